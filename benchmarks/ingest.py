"""Ingest of a JSONL query log against DuckDB's own ``read_json`` to Parquet on the same file, two cores each.

The log is made with a fixed seed: chat bodies of some 450 bytes with a system and a user message, prompts drawn by
Zipf's law (exponent 1.05) from 0.4 prompts per request, 100,000 users, seven tenants, 30 days in order of time.
Ours includes the start of the workers, the digest of the file, fingerprints, hashed users and the commit.
``ratio_duckdb`` is our rows per second over DuckDB's (higher is better).
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import duckdb
import numpy as np
import orjson

from benchmarks import Measured, interleaved
from prebake.progress import Silent
from prebake.settings import Settings
from prebake.stop import Stop
from storage.store import open_store
from tasks.ingest import ingest

_CORES = 2
_ROUNDS = 3
_START = datetime(2026, 1, 1, tzinfo=UTC)
_SYSTEM = "You are the assistant of a bank. Answer briefly and politely, and never give legal advice."
_WORDS = "account card payment transfer balance limit password refund fee rate travel order late help invoice plan"


def run(size: int = 1_000_000) -> Measured:
    """Measure both ways on one file of ``size`` rows, one after the other, three times."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_CORES])
    with TemporaryDirectory(prefix="prebake-bench-") as name:
        folder = Path(name)
        file = folder / "log.jsonl"
        distinct = _write_log(file, size)
        stores = (folder / f"store-{turn}" for turn in range(_ROUNDS))
        seconds = interleaved(
            {"ours": lambda: _ours(file, next(stores), size), "duckdb": lambda: _duckdb(file, folder)}, _ROUNDS
        )
        megabytes = file.stat().st_size // 10**6
    return Measured(
        ratios={"ratio_duckdb": seconds["duckdb"] / seconds["ours"]},
        sizes={"rows": size, "distinct_prompts": distinct, "megabytes": megabytes, "cores": _CORES},
        figures={"ours_rows_per_s": size / seconds["ours"], "duckdb_rows_per_s": size / seconds["duckdb"]},
    )


def _write_log(file: Path, size: int) -> int:
    """Write the log; returns how many distinct prompts it has."""
    random = np.random.default_rng(7)
    pool = max(10, size * 2 // 5)
    weights = 1 / np.arange(1, pool + 1) ** 1.05
    picks = random.choice(pool, size, p=weights / weights.sum())
    users = random.integers(0, 100_000, size)
    words = _WORDS.split()
    prompts = {
        pick: f"{' '.join(random.choice(words, random.integers(6, 30)))} {pick}?" for pick in np.unique(picks).tolist()
    }
    gap = timedelta(days=30) / size
    with file.open("wb") as handle:
        for number, (pick, user) in enumerate(zip(picks.tolist(), users.tolist(), strict=True)):
            handle.write(
                orjson.dumps(
                    {
                        "timestamp": (_START + gap * number).isoformat(),
                        "user": f"user-{user}",
                        "model": "gpt-4o-mini",
                        "temperature": 0.2,
                        "max_tokens": 256,
                        "messages": [
                            {"role": "system", "content": _SYSTEM},
                            {"role": "user", "content": prompts[pick]},
                        ],
                        "metadata": {"tenant": f"tenant-{user % 7}"},
                    }
                )
                + b"\n"
            )
    return len(prompts)


def _ours(file: Path, root: Path, size: int) -> float:
    settings = Settings(store={"root": str(root)})
    with open_store(settings) as store:
        start = perf_counter()
        report = ingest(store, settings, [str(file)], preset="openai", progress=Silent(), stop=Stop())
        seconds = perf_counter() - start
    if report.rows != size:
        raise RuntimeError(f"{report.rows} rows read, expected {size}")
    return seconds


def _duckdb(file: Path, folder: Path) -> float:
    with duckdb.connect() as connection:
        connection.execute(f"set threads = {_CORES}")
        start = perf_counter()
        connection.execute(
            f"copy (select * from read_json('{file}', format = 'newline_delimited')) "
            f"to '{folder / 'out.parquet'}' (format parquet)"
        )
        return perf_counter() - start
