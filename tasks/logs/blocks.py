"""What passes from those who read a file to those who read its rows: blocks of rows, and what lies between them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from prebake.errors import StorageError


@dataclass(frozen=True)
class Lines:
    """Whole lines of JSON text; ``first`` is the number of the first one in the file, from 1."""

    first: int
    data: bytes


@dataclass(frozen=True)
class Span:
    """Lines that lie in a file as they are: whoever reads their rows reads them there, so no pipe has to carry them."""

    first: int
    file: Path
    offset: int
    size: int

    @property
    def data(self) -> bytes:
        """The lines. Raises StorageError if the file is refused, or was cut since."""
        try:
            with self.file.open("rb", buffering=0) as handle:
                data = os.pread(handle.fileno(), self.size, self.offset)
        except OSError as error:
            raise StorageError(f"{self.file}: cannot be read: {error.strerror}") from error
        if len(data) < self.size:
            raise StorageError(
                f"{self.file}: was cut while it was read; ingest files that are finished, and run it again"
            )
        return data


@dataclass(frozen=True)
class Rows:
    """Rows that are read already, each with its line in the file."""

    rows: list[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Batch:
    """Rows of a Parquet file; ``first`` is the number of the first one in the file, from 1."""

    first: int
    data: pa.RecordBatch


Block = Lines | Span | Rows | Batch


class Reject(NamedTuple):
    """A place in the file with no row that could be read, and why."""

    line: int
    reason: str


def too_long(max_row_bytes: int) -> str:
    """The reason for rejecting a row above the limit."""
    return f"longer than {max_row_bytes} bytes (ingest.max_row_bytes)"
