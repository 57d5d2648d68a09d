"""Where the lines of a block of JSON Lines begin and end, and where in them the quotation marks stand.

In: the bytes of a block. Out: numpy arrays, found for all lines at once in a few passes over the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int32]
_END, _RETURN, _QUOTE, _BACKSLASH = b'\n\r"\\'
_FIRST_PRINTABLE: Final = 32
_MOST_BYTES: Final = 2**31 - 2  # places are 32-bit numbers
_PIECE: Final = 2**19
_MOST_BACKSLASHES: Final = 32  # JSON in JSON in JSON has 7 before a quotation mark


@dataclass(frozen=True, slots=True)
class Marks:
    """The marks of a block: its quotation marks, but for those that are escaped, and its line ends.

    ``data`` ends with a line end. ``at`` are the places of the marks, and before them -1: the line end before the
    first line. ``before[n]`` says where in ``at`` the line end before line n stands; its own quotation marks follow,
    ``quotes[n]`` of them. ``quotes`` is -1 for a line that takes more than counting to read: with control characters
    (but for \\r before its end), a great many backslashes, or more than so many bytes.
    """

    data: bytes
    at: Places
    before: Places
    quotes: Places
    escaped: bool  # there are backslashes

    @classmethod
    def of(cls, data: bytes, max_row_bytes: int) -> Self | None:
        """The marks of whole lines; None if they are not all UTF-8, or 2 GB and more."""
        if len(data) > _MOST_BYTES or not _is_utf8(data):
            return None
        if not data.endswith(b"\n"):
            data += b"\n"
        letters = np.frombuffer(data, np.uint8)
        found = _marks(letters)
        escaped = b"\\" in data
        odd = np.zeros(0, np.int32)
        if escaped:
            found, odd = _unescaped(letters, found)
        at = np.concatenate([np.array([-1], np.int32), found])
        ends = np.flatnonzero(letters[found] == _END).astype(np.int32) + 1
        before = np.concatenate([np.zeros(1, np.int32), ends[:-1]])
        quotes = ends - before - 1
        stops = at[ends]
        quotes[np.diff(stops, prepend=-1) - 1 > max_row_bytes] = -1
        quotes[np.searchsorted(stops, odd)] = -1
        control = letters < _FIRST_PRINTABLE
        if np.count_nonzero(control) != len(stops):
            control[:-1] &= ~((letters[:-1] == _RETURN) & (letters[1:] == _END))
            control[stops] = False
            quotes[np.searchsorted(stops, np.flatnonzero(control))] = -1
        return cls(data, at, before, quotes, escaped)

    def line(self, number: int) -> bytes:
        """The line of that number, from 0, with its end."""
        end = self.before[number + 1] if number + 1 < len(self.before) else -1
        return self.data[self.at[self.before[number]] + 1 : self.at[end] + 1]


def _marks(letters: npt.NDArray[np.uint8]) -> Places:
    """The places of quotation marks and line ends; piece by piece, so that each stays in the processor's cache."""
    found = []
    for start in range(0, len(letters), _PIECE):
        piece = letters[start : start + _PIECE]
        found.append(np.flatnonzero((piece == _QUOTE) | (piece == _END)).astype(np.int32) + np.int32(start))
    return np.concatenate(found)


def _unescaped(letters: npt.NDArray[np.uint8], marks: Places) -> tuple[Places, Places]:
    """The marks without the quotation marks behind an odd number of backslashes, and those behind a great many."""
    behind = np.flatnonzero((letters[marks] == _QUOTE) & (letters[marks - 1] == _BACKSLASH))
    before = marks[behind] - 2
    even = np.zeros(len(behind), np.bool_)
    more = np.arange(len(behind))
    for _ in range(_MOST_BACKSLASHES):
        more = more[letters[before[more]] == _BACKSLASH]
        if not len(more):
            break
        even[more] ^= True
        before[more] -= 1
    return np.delete(marks, behind[~even]), marks[behind[more]]


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
