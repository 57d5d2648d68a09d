"""Writes the file of a snapshot's answers, which ``prebake/answer_file.py`` describes and reads.

In: answers in any order. Out: the file. Memory: some 100 bytes an answer, whatever its length; disk: twice the file.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from prebake.answer import Answer
from prebake.answer_file import FORMAT, HEADER, MAGIC, MOST_BITS, record_of

_BATCH: Final = 10_000

_Numbers = npt.NDArray[np.uint64]


def write_answers(file: Path, answers: Iterable[Answer]) -> None:
    """Write the file; of several answers with one fingerprint the last wins.

    Best in the order of their fingerprints: then what was written is read back from front to end. Raises SnapshotError
    for an answer that cannot be stored, OSError if the disk refuses.
    """
    loose = file.with_suffix(".loose")
    with loose.open("w+b") as unsorted:
        fingerprints, sizes = bytearray(), array("Q")
        for answer in answers:
            record = record_of(answer)
            unsorted.write(record)
            fingerprints += answer.fingerprint
            sizes.append(len(record))
        unsorted.flush()
        halves = np.frombuffer(fingerprints, ">u8").reshape(-1, 2)
        kept = _last_of_each(halves)
        size = np.frombuffer(sizes, np.uint64)
        start = np.cumsum(size, dtype=np.uint64) - size
        with file.open("wb") as sorted_:
            sorted_.write(_head(halves[kept, 0], size[kept]))
            for first in range(0, len(kept), _BATCH):
                part = kept[first : first + _BATCH]
                sorted_.writelines(_records(unsorted.fileno(), start[part].tolist(), size[part].tolist()))
    loose.unlink()


def _last_of_each(halves: _Numbers) -> npt.NDArray[np.intp]:
    """The places of the answers that win, in the order of their fingerprints (two halves each)."""
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: the last of equal ones stays last
    ordered = halves[order]
    is_last = np.ones(len(order), dtype=bool)
    is_last[:-1] = (ordered[1:] != ordered[:-1]).any(axis=1)
    last: npt.NDArray[np.intp] = order[is_last]
    return last


def _head(first_half: _Numbers, size: _Numbers) -> bytes:
    """The header and the directory of these sorted fingerprints and the sizes of their records."""
    bits = min(len(size).bit_length(), MOST_BITS)  # half a bucket to one for each answer
    bucket = (first_half >> np.uint64(32)) >> np.uint64(MOST_BITS - bits)
    begin = np.searchsorted(bucket, np.arange(2**bits + 1, dtype=np.uint64))
    offset = np.append(np.uint64(0), np.cumsum(size, dtype=np.uint64))[begin]
    start = HEADER.size + offset.nbytes
    return HEADER.pack(MAGIC, FORMAT, bits, len(size)) + (offset + np.uint64(start)).astype("<u8").tobytes()


def _records(file: int, starts: list[int], sizes: list[int]) -> Iterator[bytes]:
    return (os.pread(file, size, start) for start, size in zip(starts, sizes, strict=True))
