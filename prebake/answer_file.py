"""The file of a snapshot's answers: each is found by its fingerprint where it lies, in a file that is mapped, not read.

A fingerprint is as good as random, so its first bits say where in the file its answer is: a look into the directory
and a look at the answer, two places in memory, where a tree has one or two on each of its levels (hashing into
buckets: Knuth, "The Art of Computer Programming" 3, 6.4). ``storage/answer_file.py`` writes it.

Layout, little endian: the header (magic, format, bits, answers); the directory, the offset of each of the 2^bits
buckets and of the end; the answers sorted by fingerprint, so that a bucket has those whose first bits are its number.
An answer's record is a fixed header (fingerprint, lengths, token counts, times), the names (few distinct values, so
that parsing them is remembered) and the assistant message as JSON, ready to be put into a response without parsing it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import Final

import orjson

from prebake.answer import Answer, Names
from prebake.errors import SnapshotError

FORMAT: Final = 1
MAGIC: Final = b"prebake\n"
HEADER: Final = Struct("<8sIIQ")
MOST_BITS: Final = 32
EVER: Final = -(2**63)  # before all times
REMEDY: Final = "publish again or go back with `prebake rollback`"

_OFFSET_BYTES: Final = 8
_HEADER_BYTES: Final = HEADER.size
_bucket: Final = Struct("<QQ").unpack_from  # where it begins, and where the next does
# fingerprint, bytes of the names, unused, bytes of the message, prompt tokens, completion tokens, baked at, expires at
# (both in microseconds since 1970, UTC)
_RECORD: Final = Struct("<16sHxxIIIqq")
_RECORD_BYTES: Final = _RECORD.size
_record: Final = _RECORD.unpack_from
_number: Final = int.from_bytes
_new: Final = tuple.__new__


class AnswerFile:
    """The answers of one file. All processes share one copy in memory, and any number of threads one AnswerFile."""

    def __init__(self, file: Path) -> None:
        """Map the file. Raises SnapshotError if it is not such a file, or cannot be read."""
        self._file = file
        try:
            with file.open("rb") as opened:
                self._data = mmap(opened.fileno(), 0, access=ACCESS_READ)
            magic, version, bits, answers = HEADER.unpack_from(self._data)
        except OSError as error:
            raise SnapshotError(f"{file}: cannot be read: {error.strerror}; {REMEDY}") from error
        except (StructError, ValueError):  # shorter than its header, or empty
            magic = version = bits = answers = 0
        if magic != MAGIC or bits > MOST_BITS:
            raise SnapshotError(f"{file}: not a snapshot's data; {REMEDY}")
        if version != FORMAT:
            raise SnapshotError(f"{file}: in format {version}, this prebake reads format {FORMAT}; upgrade prebake")
        self._answers: int = answers
        self._shift = MOST_BITS - bits
        self._start = _HEADER_BYTES + _OFFSET_BYTES * (2**bits + 1)
        if self._data[self._start - _OFFSET_BYTES : self._start] != len(self._data).to_bytes(_OFFSET_BYTES, "little"):
            raise SnapshotError(f"{file}: not as long as its directory says; {REMEDY}")

    def get(self, fingerprint: bytes, now_us: int) -> Answer | None:
        """The answer with that fingerprint if it expires after ``now_us`` (microseconds since 1970).

        Raises SnapshotError if its bytes are damaged.
        """
        data = self._data
        try:
            bucket = _number(fingerprint[:4], "big") >> self._shift
            start, end = _bucket(data, _HEADER_BYTES + _OFFSET_BYTES * bucket)
            while start < end:
                found, names_bytes, message_bytes, prompt_tokens, completion_tokens, baked_us, expires_us = _record(
                    data, start
                )
                names_start = start + _RECORD_BYTES
                message_start = names_start + names_bytes
                start = message_start + message_bytes
                if found == fingerprint:
                    if not message_bytes or start > end:
                        break
                    if expires_us <= now_us:
                        return None
                    names = _names(data[names_start:message_start])
                    message = data[message_start:start]
                    fields = (fingerprint, message, names, prompt_tokens, completion_tokens, baked_us, expires_us)
                    return _new(Answer, fields)
            if start == end:
                return None
        except (StructError, TypeError, ValueError):
            pass
        raise SnapshotError(f"{self._file}: damaged at answer {fingerprint.hex()}; {REMEDY}")

    def __iter__(self) -> Iterator[bytes]:
        """The fingerprints, sorted. Raises SnapshotError if the bytes are damaged."""
        start = self._start
        while start < len(self._data):
            try:
                fingerprint, names_bytes, message_bytes, *_ = _record(self._data, start)
            except StructError:
                raise SnapshotError(f"{self._file}: damaged at byte {start}; {REMEDY}") from None
            yield fingerprint
            start += _RECORD_BYTES + names_bytes + message_bytes

    def __len__(self) -> int:
        """How many answers there are."""
        return self._answers


def record_of(answer: Answer) -> bytes:
    """The answer's bytes in the file. Raises SnapshotError for counts or names that no answer can have."""
    if not answer.run_id.isprintable():  # it stands in a response header
        raise SnapshotError(f"answer {answer.fingerprint.hex()}: the run's name {answer.run_id!r} is not printable")
    names = orjson.dumps(tuple(answer.names))
    try:
        header = _RECORD.pack(answer.fingerprint, len(names), len(answer.message_json), *answer[3:])
    except StructError as error:
        raise SnapshotError(f"answer {answer.fingerprint.hex()}: cannot be stored: {error}") from None
    return b"".join((header, names, answer.message_json))


@lru_cache(maxsize=4096)
def _names(names: bytes) -> Names:
    return Names(*orjson.loads(names))
