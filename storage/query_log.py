"""The query log's Parquet files: written by day beside the table, added to it in one commit.

In: requests, one call each. Out: Parquet files in the query log's schema. What rows share (one request asked a
thousand times) is kept and written once: the columns are dictionaries from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prebake.tables import QUERY_LOG, TIME
from storage.data_file import DataFile

# A window of rows is held in memory before it is written: about 60 bytes a row, and the text of its requests.
_WINDOW_ROWS: Final = 262_144
_WINDOW_TEXT_BYTES: Final = 64 * 2**20
_OPEN_FILES: Final = 64
_DAY_US: Final = 86_400_000_000
_EPOCH: Final = date(1970, 1, 1)
_SHARED: Final = ("route", "tenant", "scope", "fingerprint", "bypass", "turns", "model", "request", "prompt")
_NAMES: Final = tuple(c.name for c in QUERY_LOG.columns if c.name not in QUERY_LOG.partition_by)


@dataclass(eq=False, slots=True)  # not frozen: that makes one three times as slow to make
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
        at = np.array(self._at, dtype=np.int32)
        ts_us = np.array(self._ts_us, dtype=np.int64)
        own = {
            "ts": pa.array(ts_us, pa.int64()).cast(TIME),
            "user_hash": pa.array(self._user_hash, pa.int64()),
            "prompt_tokens": pa.array(self._prompt_tokens, pa.int64()),
            "completion_tokens": pa.array(self._completion_tokens, pa.int64()),
            "cache": pa.array(self._cache, pa.string()),
        }
        shared = {name: _Values(name, self._places) for name in _SHARED}
        days = ts_us // _DAY_US
        if days[0] == days[-1] and (days == days[0]).all():
            self._write_day(int(days[0]), own, shared, at)
        else:
            order = np.argsort(days, kind="stable")
            numbers, starts = np.unique(days[order], return_index=True)
            for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
                taken = {name: column.take(pa.array(rows)) for name, column in own.items()}
                self._write_day(number, taken, shared, at[rows])
        self._clear()

    def _write_day(
        self, number: int, own: Mapping[str, pa.Array], shared: Mapping[str, _Values], at: npt.NDArray[np.int32]
    ) -> None:
        """Write one row group of the day that lies ``number`` days after 1970-01-01."""
        columns = {
            **own,
            **{name: values.of(at) for name, values in shared.items()},
            "source": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(at), np.int32)), [self._source]),
        }
        table = pa.table({name: columns[name] for name in _NAMES})
        day = _EPOCH + timedelta(days=number)
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
            use_dictionary=[name for name in _NAMES if name != "ts"],
            column_encoding={"ts": "DELTA_BINARY_PACKED"},
            dictionary_pagesize_limit=_WINDOW_TEXT_BYTES,
            store_schema=False,  # readers see plain strings, not our dictionaries
        )
        self._rows[path] = 0
        self._day_of[path] = day
        self._open[day] = path, writer
        return path, writer

    def _close(self, day: date) -> None:
        self._open.pop(day)[1].close()


class _Values:
    """One column of the requests of a window: each value once, and for each request which one it has (-1: null)."""

    def __init__(self, name: str, requests: Iterable[Request]) -> None:
        numbers: dict[Any, int] = {None: -1}
        found = map(attrgetter(name), requests)
        self._which = np.array([numbers.setdefault(value, len(numbers) - 1) for value in found], dtype=np.int32)
        self._values = pa.array(list(numbers)[1:], QUERY_LOG.schema.field(name).type)

    def of(self, at: npt.NDArray[np.int32]) -> pa.Array:
        """The values of the rows whose requests are these; texts as a dictionary of no more than what they use."""
        which = self._which[at]
        null = which < 0
        used = np.zeros(len(self._values) + 1, dtype=bool)  # one more for the nulls
        used[which] = True
        values = self._values
        if not used[:-1].all():
            values = values.filter(pa.array(used[:-1]))
            which = (np.cumsum(used, dtype=np.int32) - 1)[which]
        index = pa.array(which, mask=null)
        return values.take(index) if pa.types.is_integer(values.type) else pa.DictionaryArray.from_arrays(index, values)
