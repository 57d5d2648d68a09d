"""A Parquet file that is written and waits for its commit to a table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DataFile:
    """A finished Parquet file on local disk with rows of one day, in the table's schema without ``day``."""

    day: date
    path: Path
    rows: int
