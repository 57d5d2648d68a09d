"""Rows of the smallest table, for tests and for the processes they start: light to import."""

from __future__ import annotations

from datetime import date

import pyarrow as pa

from prebake.settings import Settings
from prebake.tables import REJECTS
from storage.delta import DeltaTable
from storage.objects import open_objects

FIRST, SECOND = date(2026, 1, 1), date(2026, 1, 2)


def rows(*lines: int, day: date = FIRST) -> pa.Table:
    """One row for each number, as its line."""
    return pa.Table.from_pylist(
        [{"day": day, "source": "s", "file": "f", "line": number, "reason": "r"} for number in lines],
        schema=REJECTS.schema,
    )


def numbers(table: DeltaTable) -> list[int]:
    """The lines of all rows, in order."""
    return sorted(table.scan().to_table(columns=["line"])["line"].to_pylist())


def open_table(settings: Settings) -> DeltaTable:
    """The table of rejects in that store."""
    return DeltaTable(REJECTS, open_objects(settings.store))
