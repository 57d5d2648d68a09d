"""The query log's Parquet files: written by day beside the table, added to it in one commit.

In: requests, one call each. Out: Parquet files in the query log's schema. What rows share (one request asked a
thousand times) is kept and written once: the columns are dictionaries from the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prebake.tables import QUERY_LOG, TIME
from storage.delta import DataFile

# A window of rows is held in memory before it is written: about 60 bytes a row, and the text of its requests.
_WINDOW_ROWS: Final = 262_144
_WINDOW_TEXT_BYTES: Final = 64 * 2**20
_OPEN_FILES: Final = 64
_DAY_US: Final = 86_400_000_000
_EPOCH: Final = date(1970, 1, 1)
_SHARED: Final = ("route", "tenant", "scope", "fingerprint", "bypass", "turns", "model", "request", "prompt")


@dataclass(eq=False, frozen=True, slots=True)
class Request:
    """What all rows of one request have in common: columns of the query log, by their names. Equal only to itself."""

    route: str | None
    tenant: str | None
    scope: str | None
    fingerprint: bytes | None
    bypass: str | None
    turns: int
    model: str
    request: str | None
    prompt: str


class DayFiles:
    """Writes the rows of one source to one Parquet file or more for each day."""

    def __init__(self, folder: Path, source: str) -> None:
        self._folder = folder
        self._source = source
        self._open: dict[date, tuple[Path, pq.ParquetWriter]] = {}
        self._rows: dict[Path, int] = {}
        self._day_of: dict[Path, date] = {}
        self._clear()

    def add(
        self,
        request: Request,
        ts_us: int,
        user_hash: int | None,
        prompt_tokens: int | None,
        completion_tokens: int | None,
        cache: str | None,
    ) -> None:
        """Take one row; ``ts_us`` in microseconds since 1970. Raises OSError if the disk refuses."""
        place = self._places.get(request)
        if place is None:
            place = self._places[request] = len(self._places)
            self._text_bytes += len(request.request or "") + len(request.prompt)
        self._at.append(place)
        self._ts_us.append(ts_us)
        self._user_hash.append(user_hash)
        self._prompt_tokens.append(prompt_tokens)
        self._completion_tokens.append(completion_tokens)
        self._cache.append(cache)
        if len(self._at) >= _WINDOW_ROWS or self._text_bytes >= _WINDOW_TEXT_BYTES:
            self._write_window()

    def finish(self) -> list[DataFile]:
        """Write what is left; returns the files, in the order of their days. Raises OSError if the disk refuses."""
        if self._at:
            self._write_window()
        for day in list(self._open):
            self._close(day)
        return [DataFile(self._day_of[path], path, rows) for path, rows in sorted(self._rows.items())]

    def _clear(self) -> None:
        self._places: dict[Request, int] = {}
        self._text_bytes = 0
        self._at: list[int] = []
        self._ts_us: list[int] = []
        self._user_hash: list[int | None] = []
        self._prompt_tokens: list[int | None] = []
        self._completion_tokens: list[int | None] = []
        self._cache: list[str | None] = []

    def _write_window(self) -> None:
        at = np.array(self._at, dtype=np.int64)
        ts_us = np.array(self._ts_us, dtype=np.int64)
        own = pa.table(
            {
                "ts": pa.array(ts_us, pa.int64()).cast(TIME),
                "user_hash": pa.array(self._user_hash, pa.int64()),
                "prompt_tokens": pa.array(self._prompt_tokens, pa.int64()),
                "completion_tokens": pa.array(self._completion_tokens, pa.int64()),
                "cache": pa.array(self._cache, pa.string()),
            }
        )
        shared = _shared(list(self._places))
        days = ts_us // _DAY_US
        order = np.argsort(days, kind="stable")
        numbers, starts = np.unique(days[order], return_index=True)
        for number, rows in zip(numbers, np.split(order, starts[1:]), strict=True):
            self._write_day(_EPOCH + timedelta(days=int(number)), own.take(rows), shared, at[rows])
        self._clear()

    def _write_day(self, day: date, own: pa.Table, shared: pa.Table, at: npt.NDArray[np.int64]) -> None:
        """Write one row group: only the day's own requests go into its dictionaries."""
        used, index = np.unique(at, return_inverse=True)
        columns = {name: own.column(name) for name in own.column_names}
        for name, column in zip(_SHARED, shared.take(used).combine_chunks().columns, strict=True):
            columns[name] = _spread(column, index)
        columns["source"] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(at), np.int32)), [self._source])
        names = [column.name for column in QUERY_LOG.columns if column.name not in QUERY_LOG.partition_by]
        table = pa.table({name: columns[name] for name in names})
        path, writer = self._open.get(day) or self._create(day, table.schema)
        writer.write_table(table)
        self._rows[path] += len(at)

    def _create(self, day: date, schema: pa.Schema) -> tuple[Path, pq.ParquetWriter]:
        if len(self._open) >= _OPEN_FILES:
            self._close(next(iter(self._open)))
        path = self._folder / f"{day.isoformat()}-{len(self._rows):05}.parquet"
        writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            compression_level=1,
            dictionary_pagesize_limit=_WINDOW_TEXT_BYTES,
            store_schema=False,  # readers see plain strings, not our dictionaries
        )
        self._rows[path] = 0
        self._day_of[path] = day
        self._open[day] = path, writer
        return path, writer

    def _close(self, day: date) -> None:
        self._open.pop(day)[1].close()


def _shared(requests: list[Request]) -> pa.Table:
    types: dict[str, Any] = {column.name: column.type for column in QUERY_LOG.columns}
    return pa.table({name: pa.array([getattr(r, name) for r in requests], types[name]) for name in _SHARED})


def _spread(column: pa.ChunkedArray, index: npt.NDArray[np.int64]) -> pa.Array:
    """The requests' values for each row; texts as dictionaries, which hold each text once."""
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    return (values if pa.types.is_integer(values.type) else values.dictionary_encode()).take(pa.array(index))
