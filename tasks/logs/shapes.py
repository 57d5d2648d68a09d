"""Lines that look alike, told by the thousand instead of parsing each.

A program writes the lines of its log one like the other: the same keys in the same order, the same model, parameters
and system prompt. Only the time, who asks, the question and the counts of tokens change. A shape is such a line with
holes where these stand. What is in no hole must be the same byte for byte, and what is in a hole is one text or one
number; so a line that fits has its values under the same keys as the line that the shape was learned from.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from prebake.request import DELIVERY_FIELDS
from tasks.logs.marks import Marks
from tasks.logs.presets import Entry, Path, Preset
from tasks.logs.trouble import NotARequestError, RowError

# Every text and number of a line in its order; group 1 where the text is a key.
_VALUE: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"(\s*+:)?|-?[0-9][0-9.eE+-]*+')
# What may stand in a hole: nothing that would not be valid JSON there, but for a rare few. (For RE2, by way of Arrow.)
_TEXT: Final = (
    r'^(?:[^\\]|\\(?:["\\/bfnrt]|u(?:[0-9A-CEFa-cef]X{3}|[Dd][0-7]XX|[Dd][89ABab]XX\\u[Dd][C-Fc-f]XX)))*$'.replace(
        "X", "[0-9A-Fa-f]"
    )
)
_NUMBERS: Final = {
    "prompt_tokens": r"^(?:0|[1-9][0-9]{0,17})$",
    "completion_tokens": r"^(?:0|[1-9][0-9]{0,17})$",
    "time": r"^(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,9})?$",
    "unread": r"^-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?(?:e-[0-9]{1,2})?$",
}
_FIELDS: Final = ("time", "question", "tenant", "user", "prompt_tokens", "completion_tokens")
_UNREAD: Final = "unread"
_MOST: Final = 16  # shapes of lines with as many quotation marks
_LONGEST: Final = 16_384  # bytes of a line that a shape is learned from
_FEWEST: Final = 64  # lines of a block that must be left before a shape is learned from one of them
_FEW: Final = 8  # lines that a shape must fit at first, or it is not remembered
# A lesson takes as long as parsing a hundred lines: after so many in vain there is one more every few blocks.
_LESSONS: Final = 8.0
_LESSONS_PER_BLOCK: Final = 1 / 8

Numbers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Fit:
    """Lines of one shape. ``holes`` has what stands in its holes: JSON texts without their quotes, and numbers."""

    shape: Shape
    lines: Numbers  # their numbers in the block, from 0
    holes: dict[str, pa.BinaryArray]


class _Hole(NamedTuple):
    """A value between two marks of a line: ``after`` bytes behind one, ``until`` bytes before the next."""

    field: str
    is_text: bool
    mark: int  # from 0, the line end before the line
    after: int
    until: int


class Shape:
    """A line with holes. ``entry`` is what its own line says."""

    def __init__(self, entry: Entry, holes: list[_Hole], marks: Marks) -> None:
        self.entry = entry
        self.quotes = int(marks.quotes[0])
        self.time_is_text = any(hole.is_text for hole in holes if hole.field == "time")
        self._holes = holes
        bounds = self._bounds(marks, np.zeros(1, np.int64))[0].tolist()
        between = [marks.data[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
        self._between = [pa.scalar(text, pa.binary()) for text in between]
        self._lengths = np.array(list(map(len, between)), np.int32)

    def fit(self, marks: Marks, lines: Numbers) -> Fit:
        """Those of the lines, which all have as many quotation marks as this one, that are of this shape."""
        bounds = self._bounds(marks, lines)
        lengths = np.diff(bounds, axis=1)
        # No hole is empty: layouts take an empty text for none.
        fits = (lengths[:, ::2] == self._lengths).all(axis=1) & (lengths[:, 1::2] > 0).all(axis=1)
        if not fits.all():
            lines, bounds = lines[fits], bounds[fits]
        if not len(lines):
            return Fit(self, lines, {})
        pieces = _Pieces(marks.data, bounds)
        good = np.ones(len(lines), np.bool_)
        for place, text in enumerate(self._between):
            good &= _mask(pc.equal(pieces.column(2 * place), text))
        columns: dict[str, pa.BinaryArray] = {}
        for place, hole in enumerate(self._holes):
            column = pieces.column(2 * place + 1)
            if not hole.is_text:
                good &= _mask(pc.match_substring_regex(column, _NUMBERS[hole.field]))
            elif marks.escaped:
                good &= _is_text(column)
            if hole.field != _UNREAD:
                columns[hole.field] = column
        if not good.all():
            lines = lines[good]
            columns = {field: column.filter(pa.array(good)) for field, column in columns.items()}
        return Fit(self, lines, columns)

    def _bounds(self, marks: Marks, lines: Numbers) -> npt.NDArray[np.int32]:
        """Where each line starts, where its holes start and end, and where it ends: a row for each line."""
        first = marks.before[lines]
        bounds = np.empty((len(lines), 2 * len(self._holes) + 2), np.int32)
        bounds[:, 0] = marks.at[first] + 1
        for place, hole in enumerate(self._holes):
            bounds[:, 2 * place + 1] = marks.at[first + hole.mark] + hole.after
            bounds[:, 2 * place + 2] = marks.at[first + hole.mark + 1] - hole.until
        bounds[:, -1] = marks.at[first + self.quotes + 1]
        return bounds


class _Pieces:
    """Pieces of one text between bounds that never go back, column by column, as Arrow has them without a copy."""

    def __init__(self, data: bytes, bounds: npt.NDArray[np.int32]) -> None:
        offsets = bounds.ravel()
        self._starts = np.arange(len(bounds), dtype=np.int32) * bounds.shape[1]
        count = max(0, len(offsets) - 1)
        self._all = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])

    def column(self, number: int) -> pa.BinaryArray:
        return self._all.take(pa.array(self._starts + number))


def _mask(values: pa.BooleanArray) -> Bools:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.bool_)


def _is_text(values: pa.BinaryArray) -> Bools | bool:
    """Which values are valid JSON texts; control characters and what is no UTF-8 are sorted out before."""
    plain = _mask(pc.invert(pc.match_substring(values, b"\\")))
    return True if plain.all() else plain | _mask(pc.match_substring_regex(values, _TEXT))


class Shapes:
    """The shapes of one log, learned from lines that fit none so far."""

    def __init__(self, read: Preset, looks_at: Callable[[Path], bool]) -> None:
        """``read`` is the layout, ``looks_at`` says whether it may look at the value at a path."""
        self._read = read
        self._looks_at = looks_at
        # By quotation marks, the last that fitted first.
        self._shapes: defaultdict[int, list[Shape]] = defaultdict(list)
        self._lessons: defaultdict[int, float] = defaultdict(lambda: _LESSONS)

    def fits(self, marks: Marks) -> Iterator[Fit]:
        """The lines of each shape that is known or can be learned from these lines."""
        order = np.argsort(marks.quotes, kind="stable")
        counts, starts = np.unique(marks.quotes[order], return_index=True)
        for quotes, lines in zip(counts.tolist(), np.split(order, starts[1:]), strict=True):
            if quotes > 0:
                yield from self._fits(marks, quotes, lines)

    def _fits(self, marks: Marks, quotes: int, left: Numbers) -> Iterator[Fit]:
        """The same of lines that have as many quotation marks."""
        for shape in list(self._shapes[quotes]):
            fit = shape.fit(marks, left)
            if len(fit.lines):
                left = self._without(fit, left)
                yield fit
        self._lessons[quotes] = min(_LESSONS, self._lessons[quotes] + _LESSONS_PER_BLOCK)
        while len(left) >= _FEWEST and self._lessons[quotes] >= 1:
            learned = self._learned(marks.line(int(left[0])))
            if learned and len((fit := learned.fit(marks, left)).lines) >= _FEW:
                left = self._without(fit, left)
                yield fit
            else:
                left = left[1:]
                self._lessons[quotes] -= 1

    def _without(self, fit: Fit, left: Numbers) -> Numbers:
        """The lines that are left without those that fit; remembers their shape."""
        known = self._shapes[fit.shape.quotes]
        known[:] = [fit.shape, *(shape for shape in known if shape is not fit.shape)][:_MOST]
        return left[~np.isin(left, fit.lines, kind="table")] if len(fit.lines) < len(left) else left[:0]

    def _learned(self, line: bytes) -> Shape | None:
        marks = Marks.of(line, _LONGEST)
        if marks is None or marks.quotes[0] < 0:
            return None
        try:
            row = orjson.loads(line)
            if not isinstance(row, dict):
                return None
            entry = self._read(row)
            holes = list(self._holes(line, marks, entry))
        except (NotARequestError, RecursionError, RowError, TypeError, ValueError):  # the row's own reader says why
            return None
        model = entry.body.get("model")
        if not isinstance(model, str) or not model or not {"time", "question"} <= {hole.field for hole in holes}:
            return None
        return Shape(entry, holes, marks)

    def _holes(self, line: bytes, marks: Marks, entry: Entry) -> Iterator[_Hole]:
        """The values that may be holes, found by trying: each gets a mark, and the layout is asked what changes.

        Marks in holes stay, so in the end it is tried with all of them at once.
        """
        marked, longer, used = line, 0, -1
        unlike_any = secrets.randbelow(10**17)  # nobody can have written it into a line
        said = _said(entry)
        for number, value in enumerate(_VALUE.finditer(line)):
            if value[1] is not None:
                continue
            is_text = value[0].startswith(b'"')
            start, end = value.start() + is_text, value.end() - is_text
            before = int(np.searchsorted(marks.at, start)) - 1
            if before == used or start == end:  # two numbers between the same marks; an empty text
                continue
            mark = f"mark {unlike_any} {number}" if is_text else 10**17 + unlike_any + number
            tried = b"%b%b%b" % (marked[: value.start() + longer], orjson.dumps(mark), marked[value.end() + longer :])
            field, says = self._field(tried, mark, said)
            if field:
                yield _Hole(field, is_text, before, start - int(marks.at[before]), int(marks.at[before + 1]) - end)
                marked, longer, said, used = tried, len(tried) - len(line), says, before

    def _field(self, marked: bytes, mark: str | int, said: _Said) -> tuple[str, _Said]:
        """What a value says, and what all say with the mark in its place; an empty name: it may be no hole."""
        row = orjson.loads(marked)
        path = _path_of(mark, row)
        if path is None:  # of a name that is written twice the last one counts
            return "", said
        if not self._looks_at(path):
            return _UNREAD, said
        try:
            says = _said(self._read(row))
        except (NotARequestError, RowError):
            return "", said
        differ = [name for name in says if says[name] != said[name]]
        if "question" in differ:
            differ.remove("body")
        field = differ[0] if len(differ) == 1 else ""
        return (field, says) if field in _FIELDS and says[field] == mark else ("", said)


def text_of(value: bytes) -> str:
    """The text that JSON writes like this between quotes."""
    return str(orjson.loads(b'"%b"' % value)) if b"\\" in value else value.decode()


_Said = dict[str, Any]


def _said(entry: Entry) -> _Said:
    """All that a line says, by name; the question both by itself and in the body."""
    body = {name: value for name, value in entry.body.items() if name not in DELIVERY_FIELDS}
    return {**entry._asdict(), "body": orjson.dumps(body), "question": _question(body)}


def _question(body: dict[str, Any]) -> Any:
    """The content of the last message; None if it has none."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return last.get("content") if isinstance(last, dict) else None


def _path_of(mark: str | int, value: Any, path: Path = ()) -> Path | None:
    """Where in a parsed line the mark stands."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found = _path_of(mark, inner, (*path, key))
            if found is not None:
                return found
    return path if type(value) is type(mark) and value == mark else None
