"""Hits and savings over time, from the request log. In: its segments, each read once. Out: sums for each hour.

Segments never change, so that only new ones are read: the newest first, as many as fit into the time that a page may
take, the rest when it is looked at again. Memory: one row of sums per hour, and the names of the segments.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from gateway.request_log import FOLDER
from prebake.prices import TokenPrice, online_price
from prebake.tables import TIME
from storage.objects import Objects

DAYS = 7
BATCH_BYTES = 32_000_000
BATCH_SEGMENTS = 50
_COUNTED = pa.schema(
    [
        ("ts", TIME),
        ("cache", pa.string()),
        ("body", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("sample_share", pa.float64()),
    ]
)
_SUMS = """
select date_trunc('hour', ts) as hour, cache,
    case when cache = 'hit' then try(json_extract_string(body, '$.model')) end as model,
    sum(1 / weight) as requests,
    coalesce(sum(prompt_tokens / weight), 0), coalesce(sum(completion_tokens / weight), 0)
from (select *, coalesce(sample_share, 1) as weight from segments) group by all
"""


@dataclass
class Hour:
    """What happened in one hour, estimated from the sample where the log is one."""

    hits: float = 0
    misses: float = 0
    bypasses: float = 0
    saved_tokens: float = 0
    saved_usd: float = 0

    @property
    def requests(self) -> float:
        """All of them."""
        return self.hits + self.misses + self.bypasses


@dataclass(frozen=True)
class Past:
    """The hours from the oldest to the newest, none left out; ``complete`` if every segment of them was read."""

    hours: tuple[tuple[datetime, Hour], ...]
    complete: bool

    @property
    def total(self) -> Hour:
        """The sum of all hours."""
        total = Hour()
        for _, hour in self.hours:
            for name in vars(total):
                setattr(total, name, getattr(total, name) + getattr(hour, name))
        return total


class History:
    """Sums that grow with each look. Any thread may look; one at a time reads."""

    def __init__(self, objects: Objects, prices: Mapping[str, TokenPrice]) -> None:
        self._objects = objects
        self._prices = prices
        self._hours: dict[datetime, Hour] = defaultdict(Hour)
        self._seen: set[str] = set()
        self._lock = Lock()

    def look(self, now: datetime, *, most_s: float) -> Past:
        """The last days until ``now``; reads new segments for about ``most_s`` seconds.

        Raises StorageError if the store cannot be read. A segment that cannot be read is passed over.
        """
        with self._lock:
            give_up = time.monotonic() + most_s
            first = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=24 * DAYS - 1)
            segments = list(self._segments(first, now))
            self._forget(first, set(segments))
            new = (key for key in reversed(segments) if key not in self._seen)
            while (batch := self._batch(new)) and time.monotonic() < give_up:
                self._add(batch)
            hours = (first + timedelta(hours=number) for number in range(24 * DAYS))
            return Past(tuple((hour, self._hours.get(hour, Hour())) for hour in hours), complete=not batch)

    def _segments(self, first: datetime, now: datetime) -> Iterator[str]:
        for number in range((now.date() - first.date()).days + 1):
            day = first.date() + timedelta(days=number)
            yield from (found.key for found in self._objects.list(f"{FOLDER}/day={day}/"))

    def _forget(self, first: datetime, segments: set[str]) -> None:
        self._seen &= segments
        for hour in [hour for hour in self._hours if hour < first]:
            del self._hours[hour]

    def _batch(self, keys: Iterator[str]) -> dict[str, pa.Table]:
        """The next segments, as many as may be in memory at once."""
        batch: dict[str, pa.Table] = {}
        size = 0
        for key in keys:
            batch[key] = table = _read(self._objects.read(key))
            size += table.nbytes
            if size > BATCH_BYTES or len(batch) == BATCH_SEGMENTS:
                break
        return batch

    def _add(self, batch: dict[str, pa.Table]) -> None:
        with duckdb.connect(config={"TimeZone": "UTC", "threads": 1, "autoinstall_known_extensions": "false"}) as sql:
            sql.register("segments", pa.concat_tables(batch.values()))
            rows = sql.execute(_SUMS).fetchall()
        for at, cache, model, requests, prompt_tokens, completion_tokens in rows:
            hour = self._hours[at.astimezone(UTC)]
            if cache == "hit":
                hour.hits += requests
                hour.saved_tokens += prompt_tokens + completion_tokens
                if price := online_price(self._prices, model or ""):
                    hour.saved_usd += price.usd(prompt_tokens, completion_tokens)
            elif cache == "miss":
                hour.misses += requests
            else:
                hour.bypasses += requests
        self._seen.update(batch)


def _read(segment: bytes) -> pa.Table:
    """What is counted of one segment; nothing of a damaged one, empty columns where an older one has none."""
    try:
        file = pq.ParquetFile(pa.BufferReader(segment), pre_buffer=False)
        names = file.schema_arrow.names
        table = file.read([name for name in _COUNTED.names if name in names], use_threads=False)
        missing = [name for name in _COUNTED.names if name not in table.column_names]
        for name in missing:
            table = table.append_column(name, pa.nulls(len(table), _COUNTED.field(name).type))
        return table.select(_COUNTED.names).cast(_COUNTED)
    except (pa.ArrowException, OSError):
        return _COUNTED.empty_table()
