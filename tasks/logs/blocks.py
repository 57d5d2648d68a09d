"""What passes from those who read a file to those who read its rows: blocks of rows, and what lies between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa


@dataclass(frozen=True)
class Lines:
    """Whole lines of JSON text; ``first`` is the number of the first one in the file, from 1."""

    first: int
    data: bytes


@dataclass(frozen=True)
class Rows:
    """Rows that are read already, each with its line in the file."""

    rows: list[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Batch:
    """Rows of a Parquet file; ``first`` is the number of the first one in the file, from 1."""

    first: int
    data: pa.RecordBatch


Block = Lines | Rows | Batch


class Reject(NamedTuple):
    """A place in the file with no row that could be read, and why."""

    line: int
    reason: str


def too_long(max_row_bytes: int) -> str:
    """The reason for rejecting a row above the limit."""
    return f"longer than {max_row_bytes} bytes (ingest.max_row_bytes)"
