"""Mine: how often each fingerprint was asked on each day. In: the query log. Out: one partial aggregate per day.

DuckDB groups 16-byte fingerprints, never texts; the text of one sample per fingerprint is fetched afterwards. A day is
mined again when the log has other rows for it than its partial aggregate counts. Memory: DuckDB's own limit
(``mine.memory_gb``); a large day is mined in slices of the fingerprint space, ``ROWS_PER_SLICE`` requests each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import duckdb
import pyarrow as pa

from prebake.progress import Progress, Silent
from prebake.settings import Settings
from prebake.stop import Stop
from prebake.tables import DAILY_COUNTS
from prebake.user import hash_user
from storage.delta import DeltaTable
from storage.scratch import open_scratch
from storage.store import Store

SKETCH_SIZE: Final = 64
ROWS_PER_SLICE: Final = 16_000_000
_TENANT_KEY: Final = b"tenant"  # tenants stand by their names in the log; this only spreads them evenly


@dataclass(frozen=True)
class MineReport:
    """What was mined: the days done now, their requests and the distinct fingerprints of each day, summed."""

    days: tuple[date, ...]
    requests: int
    fingerprints: int


def mine(
    store: Store,
    settings: Settings,
    days: Sequence[date] | None = None,
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> MineReport:
    """Write the daily counts of ``days``; None: of every day whose log has changed since its counts were written.

    Each day is one commit, so a stop between days loses nothing. Raises StorageError where a table cannot be read or
    written, Interrupted when ``stop`` was requested.
    """
    progress, stop = progress or Silent(), stop or Stop()
    chosen = sorted(set(days)) if days is not None else stale_days(store)
    requests = fingerprints = 0
    with progress.track("mine", len(chosen)) as advance, open_scratch(settings) as connection:
        for day in chosen:
            stop.check()
            counted, distinct = _mine_day(store, connection, day)
            requests, fingerprints = requests + counted, fingerprints + distinct
            advance(1)
    return MineReport(tuple(chosen), requests, fingerprints)


def stale_days(store: Store) -> list[date]:
    """The days whose countable log rows are not as many as their counts say: new days, and days with late rows."""
    with duckdb.connect() as connection:
        connection.register("log", store.query_log.scan())
        connection.register("counts", store.daily_counts.scan())
        rows = connection.execute(_STALE_SQL).fetchall()
    return [day for (day,) in rows]


_STALE_SQL: Final = """
    with logged as (
        select day, count(*) as requests from log
        where bypass is null and fingerprint is not null group by day
    ), mined as (select day, sum(requests) as requests from counts group by day)
    select coalesce(logged.day, mined.day) as day from logged full join mined using (day)
    where logged.requests is distinct from mined.requests order by day
"""


def _mine_day(store: Store, connection: duckdb.DuckDBPyConnection, day: date) -> tuple[int, int]:
    """Replace one day's counts; returns its requests and its distinct fingerprints."""
    with _local_files(store, day) as files:
        if not files:
            store.daily_counts.replace_days(DAILY_COUNTS.schema.empty_table(), [day])
            return 0, 0
        requests, hashes = _prepare(connection, files, day)
        slices = max(1, -(-requests // ROWS_PER_SLICE))
        distinct = _Count()
        batches = (
            distinct.of(batch) for number in range(slices) for batch in _count(connection, hashes, number, slices)
        )
        store.daily_counts.replace_days(pa.RecordBatchReader.from_batches(DAILY_COUNTS.schema, batches), [day])
        return requests, distinct.rows


class _Count:
    """Counts the rows that pass."""

    def __init__(self) -> None:
        self.rows = 0

    def of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self.rows += batch.num_rows
        return batch


@contextmanager
def _local_files(store: Store, day: date) -> Iterator[list[Path]]:
    """The day's Parquet files on local disk: where they are, or downloaded for as long as they are needed."""
    addresses = day_files(store.query_log, day)
    with TemporaryDirectory(prefix="prebake-mine-") as folder:
        files = []
        for number, address in enumerate(addresses):
            key = address.removeprefix(f"{store.objects.uri}/")
            path = store.objects.local_path(key)
            if path is None:
                path = Path(folder, f"{number}.parquet")
                store.objects.download(key, path)
            files.append(path)
        yield files


def day_files(table: DeltaTable, day: date) -> list[str]:
    """The addresses of one day's files, in a steady order."""
    return [address for address in table.files() if f"/day={day.isoformat()}/" in address]


def _prepare(connection: duckdb.DuckDBPyConnection, files: Sequence[Path], day: date) -> tuple[int, pa.Table]:
    """Make the view ``log`` over the files and the table ``tenants``; returns how many rows count, and the tenants.

    ``row`` says file and place, so that one row can be named, and the first row of a fingerprint is always the same.
    """
    parts = (
        f"select *, {number}::bigint << 40 | file_row_number as row "
        f"from read_parquet('{_quoted(file)}', file_row_number = true, hive_partitioning = false)"
        for number, file in enumerate(files)
    )
    connection.execute(f"create or replace temp view log as {' union all '.join(parts)}")
    rows = connection.execute(
        "select tenant, count(*) from log where bypass is null and fingerprint is not null group by tenant"
    ).fetchall()
    names = [tenant for tenant, _ in rows if tenant is not None]
    hashes = pa.table(
        {
            "tenant": pa.array(names, pa.string()),
            "hash": pa.array([hash_user(t, _TENANT_KEY) for t in names], pa.int64()),
        }
    )
    connection.execute("create or replace temp table day as select $1::date as day", [day])
    return sum(count for _, count in rows), hashes


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


_SKETCH = "list_sort(list_distinct({0}))[:" + str(SKETCH_SIZE) + "]"
_COUNT_SQL: Final = f"""
    with grouped as (
        select
            fingerprint, min(row) as row, count(*) as requests,
            list(user_hash) filter (user_hash is not null) as users,
            list(hash) filter (hash is not null) as tenants,
            coalesce(sum(prompt_tokens) filter (completion_tokens is not null), 0)::bigint as prompt_tokens,
            coalesce(sum(completion_tokens) filter (prompt_tokens is not null), 0)::bigint as completion_tokens,
            count(prompt_tokens + completion_tokens) as counted,
            min(ts) as first_seen, max(ts) as last_seen
        from log left join hashes using (tenant)
        where bypass is null and fingerprint is not null and ($slices = 1 or hash(fingerprint) % $slices = $number)
        group by fingerprint
    )
    select
        (select day from day) as day, log.route, log.scope, grouped.fingerprint, grouped.requests,
        coalesce({_SKETCH.format("users")}, []) as user_sketch,
        coalesce({_SKETCH.format("tenants")}, []) as tenant_sketch,
        log.turns, grouped.prompt_tokens, grouped.completion_tokens, grouped.counted,
        grouped.first_seen, grouped.last_seen, log.request, log.prompt
    from grouped join log using (row)
"""


def _count(
    connection: duckdb.DuckDBPyConnection, hashes: pa.Table, number: int, slices: int
) -> Iterator[pa.RecordBatch]:
    connection.register("hashes", hashes)
    reader = connection.sql(_COUNT_SQL, params={"slices": slices, "number": number}).to_arrow_reader(100_000)
    for batch in reader:
        yield batch.cast(DAILY_COUNTS.schema)
