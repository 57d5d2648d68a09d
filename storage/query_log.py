"""The query log's Parquet files: written by day beside the table, added to it in one commit.

In: requests and when each came, some thousand at once. Out: Parquet files in the query log's schema. What rows share
(one request asked a thousand times) is kept and written once: the columns are dictionaries from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from prebake.tables import QUERY_LOG, TIME
from storage.data_file import DataFile

# A window of rows is held in memory before it is written: about 60 bytes a row, and the text of its requests.
WINDOW_ROWS: Final = 262_144
_WINDOW_TEXT_BYTES: Final = 32 * 2**20
_DICTIONARY_BYTES: Final = 64 * 2**20  # of one column: more than a window has
_OPEN_FILES: Final = 64
_DAY_US: Final = 86_400_000_000
_EPOCH: Final = date(1970, 1, 1)
_UNSORTED: Final = ("fingerprint", "request", "prompt")
_OWN: Final = ("tenant", "user_hash", "prompt_tokens", "completion_tokens", "cache")
_NAMES: Final = tuple(c.name for c in QUERY_LOG.columns if c.name not in QUERY_LOG.partition_by)

Int32s = npt.NDArray[np.int32]


class Kind(NamedTuple):
    """What a great many requests have in common: columns of the query log, by their names."""

    route: str | None
    scope: str | None
    bypass: str | None
    turns: int
    model: str


@dataclass(eq=False, slots=True)  # not frozen: that makes one three times as slow to make
class Request:
    """What all rows of one request have in common: columns of the query log. Equal only to itself."""

    kind: Kind
    fingerprint: bytes | None
    request: bytes | None  # UTF-8, as the prompt
    prompt: bytes


@dataclass(eq=False, frozen=True, slots=True)
class Texts:
    """Columns of what is asked, which requests of several tenants share. Equal only to itself."""

    request: pa.StringArray
    prompt: pa.StringArray

    @classmethod
    def joined(cls, parts: Iterable[Texts]) -> Self:
        """All the texts, one part behind the other."""
        columns = zip(*((part.request, part.prompt) for part in parts), strict=True)
        return cls(*map(pa.concat_arrays, columns))


class Requests(NamedTuple):
    """Distinct requests, column by column; ``kind`` and ``text`` are places in ``kinds`` and ``texts``."""

    kinds: Sequence[Kind]
    kind: Int32s
    texts: Texts
    text: Int32s
    fingerprint: pa.Array

    @classmethod
    def of(cls, requests: Sequence[Request]) -> Self:
        """The same requests in columns."""
        kinds: dict[Kind, int] = {}
        kind = [kinds.setdefault(request.kind, len(kinds)) for request in requests]
        request, prompt, fingerprint = (
            pa.array([getattr(each, name) for each in requests], QUERY_LOG.schema.field(name).type)
            for name in ("request", "prompt", "fingerprint")
        )
        text = np.arange(len(requests), dtype=np.int32)
        return cls(list(kinds), np.array(kind, np.int32), Texts(request, prompt), text, fingerprint)

    @classmethod
    def joined(cls, parts: Sequence[Requests]) -> Self:
        """All the requests, one part behind the other; texts and kinds that parts have in common are there once."""
        kinds: dict[Kind, int] = {}
        kind = [
            np.array([kinds.setdefault(own, len(kinds)) for own in part.kinds], np.int32)[part.kind] for part in parts
        ]
        starts: dict[Texts, int] = {}
        size = 0
        for part in parts:
            if part.texts not in starts:
                starts[part.texts] = size
                size += len(part.texts.prompt)
        text = [part.text + np.int32(starts[part.texts]) for part in parts]
        fingerprint = pa.concat_arrays([part.fingerprint for part in parts])
        return cls(list(kinds), np.concatenate(kind), Texts.joined(starts), np.concatenate(text), fingerprint)


class Arrivals(NamedTuple):
    """When each request came and who asked, column by column; ``which`` is the place of its request in Requests."""

    which: Int32s
    ts_us: npt.NDArray[np.int64]  # microseconds since 1970
    tenant: pa.StringArray
    user_hash: pa.Int64Array
    prompt_tokens: pa.Int64Array
    completion_tokens: pa.Int64Array
    cache: pa.StringArray

    @classmethod
    def of(cls, which: Sequence[int], ts_us: Sequence[int], *own: Sequence[Any]) -> Self:
        """The columns of these values; ``own`` are the last five, None where there is no value."""
        columns = (pa.array(values, QUERY_LOG.schema.field(name).type) for name, values in zip(_OWN, own, strict=True))
        return cls(np.array(which, np.int32), np.array(ts_us, np.int64), *columns)


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """The writer of one of the query log's files, whose columns may be dictionaries."""
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in _NAMES if name not in ("ts", "user_hash")],
        column_encoding={"ts": "DELTA_BINARY_PACKED"},
        dictionary_pagesize_limit=_DICTIONARY_BYTES,
        # Of hashes and texts they would narrow nothing.
        write_statistics=[name for name in _NAMES if name not in _UNSORTED],
        store_schema=False,  # readers see plain strings, not our dictionaries
    )


class DayFiles:
    """Writes the rows of one source to one Parquet file or more for each day."""

    def __init__(self, folder: Path, source: str) -> None:
        self._folder = folder
        self._source = source
        self._open: dict[date, tuple[Path, pq.ParquetWriter]] = {}
        self._rows: dict[Path, int] = {}
        self._day_of: dict[Path, date] = {}
        self._clear()

    def add(self, requests: Requests, arrivals: Arrivals) -> None:
        """Take rows. Raises OSError if the disk refuses."""
        self._which.append(arrivals.which + sum(len(each.kind) for each in self._requests))
        self._requests.append(requests)
        self._arrivals.append(arrivals)
        self._count += len(arrivals.which)
        self._text_bytes += requests.texts.request.nbytes + requests.texts.prompt.nbytes
        if self._count >= WINDOW_ROWS or self._text_bytes >= _WINDOW_TEXT_BYTES:
            self._write_window()

    def finish(self) -> list[DataFile]:
        """Write what is left; returns the files, in the order of their days. Raises OSError if the disk refuses."""
        if self._count:
            self._write_window()
        for day in list(self._open):
            self._close(day)
        return [DataFile(self._day_of[path], path, rows) for path, rows in sorted(self._rows.items())]

    def _clear(self) -> None:
        self._requests: list[Requests] = []
        self._arrivals: list[Arrivals] = []
        self._which: list[Int32s] = []
        self._count = self._text_bytes = 0

    def _write_window(self) -> None:
        at = np.concatenate(self._which)
        ts_us = np.concatenate([each.ts_us for each in self._arrivals])
        own = {name: pa.concat_arrays([getattr(each, name) for each in self._arrivals]) for name in _OWN}
        own["ts"] = pa.array(ts_us).cast(TIME)
        shared = _shared(Requests.joined(self._requests))
        days = ts_us // _DAY_US
        if (days[1:] < days[:-1]).any():
            order = np.argsort(days, kind="stable")
            days, at, own = days[order], at[order], {name: column.take(pa.array(order)) for name, column in own.items()}
        numbers, starts = np.unique(days, return_index=True)
        for number, start, end in zip(numbers.tolist(), starts, [*starts[1:], len(days)], strict=True):
            day = {name: column.slice(start, end - start) for name, column in own.items()}
            self._write_day(number, day, shared, at[start:end])
        self._clear()

    def _write_day(self, number: int, own: Mapping[str, pa.Array], shared: Mapping[str, _Values], at: Int32s) -> None:
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
        writer = open_writer(path, schema)
        self._rows[path] = 0
        self._day_of[path] = day
        self._open[day] = path, writer
        return path, writer

    def _close(self, day: date) -> None:
        self._open.pop(day)[1].close()


def _shared(requests: Requests) -> dict[str, _Values]:
    """The columns that follow from the requests of a window."""
    columns = {
        "fingerprint": _Values(requests.fingerprint),
        "request": _Values(requests.texts.request).spread(requests.text),
        "prompt": _Values(requests.texts.prompt).spread(requests.text),
    }
    for place, name in enumerate(Kind._fields):
        values = pa.array([kind[place] for kind in requests.kinds], QUERY_LOG.schema.field(name).type)
        columns[name] = _Values(values).spread(requests.kind)
    return columns


class _Values:
    """One column of the requests of a window: each value once, and for each request which one it has (-1: null)."""

    def __init__(self, values: pa.Array) -> None:
        found = values.dictionary_encode()
        self._values = found.dictionary
        self._which = found.indices.fill_null(-1).to_numpy()

    def spread(self, which: Int32s) -> Self:
        """The same values, for requests that have them as those at these places have."""
        self._which = self._which[which]
        return self

    def of(self, at: Int32s) -> pa.Array:
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
