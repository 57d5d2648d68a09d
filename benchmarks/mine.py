"""Mining a query log of five days, from Delta table to Delta table, against DuckDB's bare ``group by prompt``.

Ours reads fingerprints, users, tenants, times and token counts, and writes the daily counts with sketches of users and
tenants; DuckDB counts prompts over the same Parquet files in one query and writes nothing. Both on two threads. The log
is synthetic: of a day's requests 40 % are never asked again, the others are half a million prompts with Zipf
frequencies (exponent 1.1); 20 to 800 characters each; 200,000 users of 50 tenants. ``ratio_duckdb`` is our rows per
second over DuckDB's, by the clock; ``ratio_duckdb_cpu`` the same by processor seconds (higher is better).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import duckdb
import numpy as np
import orjson
import pyarrow as pa

from benchmarks import Measured, interleaved
from prebake.settings import Mine, Settings, Store
from prebake.tables import QUERY_LOG, TIME
from storage.data_file import DataFile
from storage.query_log import open_writer
from storage.store import Store as OpenStore
from storage.store import open_store
from tasks.mine import mine

THREADS = 2
DAYS = 5
FIRST = date(2026, 1, 5)
_PROMPTS = 500_000
_ZIPF = 1.1
_ONE_OFFS = 0.4
_USERS = 200_000
_TENANTS = 50
_ROW_GROUP = 262_144
_ROUNDS = 3
_SYSTEM = "You are the support assistant of a small online shop. Answer in at most three sentences, politely."
_WORDS = [
    "account",
    "card",
    "transfer",
    "how",
    "why",
    "what",
    "my",
    "the",
    "payment",
    "fee",
    "limit",
    "declined",
    "when",
    "arrive",
    "is",
    "does",
    "exchange",
    "rate",
    "top",
    "up",
    "cash",
    "withdraw",
    "verify",
    "identity",
    "refund",
    "pending",
    "please",
    "explain",
    "difference",
    "between",
    "function",
    "list",
    "sort",
    "summarise",
    "text",
    "into",
]


def run(size: int = 5_000_000) -> Measured:
    """Mine ``size`` rows over five days and count their prompts with DuckDB, in interleaved rounds."""
    with TemporaryDirectory(prefix="prebake-benchmark-") as folder:
        settings = Settings(store=Store(root=str(Path(folder, "store"))), mine=Mine(threads=THREADS))
        with open_store(settings) as store:
            files = _fill(store, Path(folder), size)
            days = [FIRST + timedelta(days=number) for number in range(DAYS)]
            cpu_s: dict[str, list[float]] = {"ours": [], "duckdb": []}
            contestants: dict[str, Callable[[], float]] = {
                "ours": partial(_seconds, partial(mine, store, settings, days), cpu_s["ours"]),
                "duckdb": partial(_seconds, partial(_duckdb, files), cpu_s["duckdb"]),
            }
            clock_s = interleaved(contestants, _ROUNDS)
            fingerprints = store.daily_counts.scan().count_rows()
    ours, theirs = clock_s["ours"], clock_s["duckdb"]
    ours_cpu, theirs_cpu = median(cpu_s["ours"]), median(cpu_s["duckdb"])
    return Measured(
        ratios={"ratio_duckdb": theirs / ours, "ratio_duckdb_cpu": theirs_cpu / ours_cpu},
        sizes={"rows": size, "days": DAYS, "fingerprints_by_day": fingerprints, "threads": THREADS},
        figures={
            "ours_rows_per_s": size / ours,
            "duckdb_rows_per_s": size / theirs,
            "ours_s": ours,
            "duckdb_s": theirs,
            "ours_cpu_s": ours_cpu,
            "duckdb_cpu_s": theirs_cpu,
        },
    )


def _seconds(work: Callable[[], object], cpu_s: list[float]) -> float:
    """The clock's seconds; those of all threads of this process are added to the list."""
    clock, cpu = perf_counter(), process_time()
    work()
    cpu_s.append(process_time() - cpu)
    return perf_counter() - clock


def _duckdb(files: Sequence[str]) -> None:
    with duckdb.connect(config={"threads": THREADS}) as connection:
        connection.read_parquet(list(files)).create_view("log")
        connection.sql("select prompt, count(*) from log group by prompt").to_arrow_table()


def _fill(store: OpenStore, folder: Path, size: int) -> list[str]:
    """The query log, as ingest writes it: each row group with dictionaries of its own."""
    random = np.random.default_rng(1)
    pool = _texts(random, range(_PROMPTS))
    files = []
    for number in range(DAYS):
        day = FIRST + timedelta(days=number)
        path = folder / f"{day}.parquet"
        rows = size // DAYS
        with open_writer(path, _schema()) as writer:
            for group in _groups(random, pool, day, rows):
                writer.write_table(group)
        files.append(DataFile(day, path, rows))
    store.query_log.append_files(files, once="benchmark")
    return store.query_log.files()


def _texts(random: np.random.Generator, numbers: range) -> pa.Table:
    """So many prompts, no two alike, with their requests and fingerprints, one row each."""
    lengths = np.clip(random.lognormal(2.6, 0.6, len(numbers)), 4, 130).astype(int)
    words = np.array(_WORDS)[random.integers(0, len(_WORDS), 1_000_000)]
    starts = random.integers(0, len(words) - 130, len(numbers))
    ends = np.cumsum(np.char.str_len(words) + 1)
    talk = " ".join(words)
    prompts = [
        f"{talk[start:end]}? {number}"
        for start, end, number in zip(ends[starts], ends[starts + lengths] - 1, numbers, strict=True)
    ]
    requests = [
        orjson.dumps(
            {
                "messages": [{"content": _SYSTEM, "role": "system"}, {"content": prompt, "role": "user"}],
                "model": "shop-assistant",
                "params": {"max_tokens": 200, "temperature": 0},
            }
        )
        for prompt in prompts
    ]
    return pa.table(
        {
            "fingerprint": pa.array([sha256(request).digest()[:16] for request in requests], pa.binary()),
            "request": pa.array(requests, pa.binary()).cast(pa.string()),
            "prompt": pa.array(prompts, pa.string()),
            "prompt_tokens": pa.array(lengths + 30, pa.int64()),
        }
    )


def _schema() -> pa.Schema:
    """The query log's columns as they are handed to the writer; texts as dictionaries."""
    texts = (pa.string(), pa.binary())
    return pa.schema(
        [
            (field.name, pa.dictionary(pa.int32(), field.type) if field.type in texts else field.type)
            for field in QUERY_LOG.schema
            if field.name != "day"
        ]
    )


def _groups(random: np.random.Generator, pool: pa.Table, day: date, rows: int) -> Iterator[pa.Table]:
    hashes = np.random.default_rng(2).integers(-(2**63), 2**63 - 1, _USERS)
    midnight_us = int(datetime.combine(day, datetime.min.time(), UTC).timestamp() * 1e6)
    times_us = midnight_us + np.sort(random.integers(0, 86_400_000_000, rows))
    ranks = np.cumsum(np.arange(1, _PROMPTS + 1) ** -_ZIPF)
    for start in range(0, rows, _ROW_GROUP):
        size = min(_ROW_GROUP, rows - start)
        once = random.random(size) < _ONE_OFFS
        asked = np.searchsorted(ranks, random.random(size) * ranks[-1]).clip(max=_PROMPTS - 1)
        asked[once] = _PROMPTS + np.arange(once.sum())
        used, index = np.unique(asked, return_inverse=True)
        first = _PROMPTS + (day - FIRST).days * rows + start
        texts = pa.concat_tables(
            [pool.take(pa.array(used[used < _PROMPTS])), _texts(random, range(first, first + int(once.sum())))]
        )
        users = (_USERS * random.random(size) ** 2).astype(int)
        columns = {
            **{name: _spread(texts[name], index) for name in ("fingerprint", "request", "prompt")},
            "ts": pa.array(times_us[start : start + size], pa.int64()).cast(TIME),
            "tenant": _spread(pa.array([f"tenant-{number}" for number in range(_TENANTS)]), users % _TENANTS),
            "user_hash": pa.array(hashes[users]),
            "turns": pa.array(np.ones(size, np.int32)),
            "prompt_tokens": texts["prompt_tokens"].combine_chunks().take(pa.array(index)),
            "completion_tokens": pa.array(random.integers(10, 200, size)),
            **{
                name: _spread(pa.array([value]), np.zeros(size, np.int64))
                for name, value in (
                    ("route", "default"),
                    ("scope", "shared"),
                    ("model", "shop-assistant"),
                    ("source", "benchmark"),
                )
            },
        }
        columns["bypass"] = columns["cache"] = pa.nulls(size, pa.string()).dictionary_encode()
        schema = _schema()
        yield pa.table([columns[field.name] for field in schema], schema=schema)


def _spread(values: pa.Array | pa.ChunkedArray, index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pa.Array:
    """The values at these places, as a dictionary array."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), values)
