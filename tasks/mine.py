"""Mine: how often each fingerprint was asked on each day. In: the query log. Out: one partial aggregate per day.

A day is mined again when the log has other rows for it than its partial aggregate counts. Days are mined side by side,
one thread each (``mine.threads``). Memory: ``mine.memory_gb``, shared by the threads; a day too large for its share is
mined in slices of the fingerprint space, each with a look at the whole day.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from prebake.errors import StorageError
from prebake.progress import Progress, Silent
from prebake.settings import Settings
from prebake.stop import Stop
from storage.data_file import DataFile
from storage.delta import DeltaTable
from storage.store import Store
from tasks.count import BYTES_PER_ROW, COLUMNS, COUNTS, DICTIONARIES, count, countable

# In all other columns nearly every value is another one: dictionaries and compression would cost more than they save.
_REPEATED: Final = (
    "route",
    "scope",
    "requests",
    "tenant_sketch.list.element",
    "turns",
    "prompt_tokens",
    "completion_tokens",
    "counted",
)


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
    threads = max(1, min(settings.mine.threads or os.cpu_count() or 1, len(chosen)))
    most_rows = max(1, int(settings.mine.memory_gb * 1e9 / BYTES_PER_ROW / threads))
    requests = fingerprints = 0
    with (
        progress.track("mine", len(chosen)) as advance,
        TemporaryDirectory(prefix="prebake-mine-") as folder,
        _threads(threads) as pool,
    ):
        mining = {pool.submit(_mine_day, store, day, Path(folder), most_rows, stop) for day in chosen}
        while mining:
            done, mining = wait(mining, return_when=FIRST_COMPLETED)
            mined = [day.result() for day in done]
            files = [day.file for day in mined if day.file]
            store.daily_counts.replace_files(files, [day.day for day in mined])
            for file in files:
                file.path.unlink()
            requests += sum(day.requests for day in mined)
            fingerprints += sum(file.rows for file in files)
            advance(len(mined))
    return MineReport(tuple(chosen), requests, fingerprints)


@contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that begin nothing more once the body has failed."""
    with ThreadPoolExecutor(number, "mine") as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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


@dataclass(frozen=True)
class _Mined:
    """One day's counts, not yet in the table; no file: nothing was asked."""

    day: date
    requests: int
    file: DataFile | None


def _mine_day(store: Store, day: date, folder: Path, most_rows: int, stop: Stop) -> _Mined:
    stop.check()
    path = folder / f"{day.isoformat()}.parquet"
    requests = rows = 0
    try:
        with (
            local_files(store, store.query_log, day) as files,
            pq.ParquetWriter(
                path,
                COUNTS,
                compression=dict.fromkeys(_REPEATED, "zstd"),
                use_dictionary=list(_REPEATED),
                store_schema=False,  # readers see plain strings, not our dictionaries
            ) as writer,
        ):
            for counts in _count(files, day, most_rows):
                stop.check()
                writer.write_table(counts)
                requests += counts["requests"].to_numpy().sum()
                rows += counts.num_rows
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {error.strerror or error}; the counts of {day} are as they were; make room, "
            "or set TMPDIR to a folder that has some"
        ) from error
    return _Mined(day, int(requests), DataFile(day, path, rows) if rows else None)


def _count(paths: Sequence[Path], day: date, most_rows: int) -> Iterator[pa.Table]:
    """The day's counts, with at most about ``most_rows`` requests in memory."""
    try:
        files = [pq.ParquetFile(path, read_dictionary=list(DICTIONARIES), memory_map=True) for path in paths]
        slices = -(-sum(file.metadata.num_rows for file in files) // most_rows)
        for number in range(slices):
            # One row group after the other, into the same memory: faster than all of them at once.
            log = [
                countable(file.read_row_group(group, list(COLUMNS), use_threads=False), number, slices)
                for file in files
                for group in range(file.num_row_groups)
            ]
            if any(part.num_rows for part in log):
                yield count(pa.concat_tables(log))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise StorageError(f"query log of {day}: cannot be read: {reason}; restore it, or ingest it again") from error


@contextmanager
def local_files(store: Store, table: DeltaTable, day: date) -> Iterator[list[Path]]:
    """One day's Parquet files on local disk: where they are, or downloaded for as long as they are needed."""
    addresses = [address for address in table.files() if f"/day={day.isoformat()}/" in address]
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
