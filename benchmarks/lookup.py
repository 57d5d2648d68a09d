"""Whole-request lookup against a raw LMDB get of the same keys and a DuckDB primary-key table of the same answers.

A lookup starts from the parsed body (a system prompt, a question, two parameters) of a route that folds text, and
ends with the message, finish reason and token counts ready for a response. All three read the same random answers.
``ratio_lmdb`` is our time over LMDB's (lower is better), ``ratio_duckdb`` is DuckDB's time over ours.
``zstd_size`` is what a trained dictionary would leave of real answers' bytes (the example's), ``zstd_us`` what reading
one would cost more at the least, its bytes being in the processor's cache.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import duckdb
import lmdb
import orjson
import pyarrow as pa
import zstandard

from benchmarks import Measured, interleaved
from examples import corpus
from prebake.answer import Answer
from prebake.answer_file import record_of
from prebake.lookup import AnswerStore
from prebake.request import Keyed, key_request
from prebake.routes import Route, Routes
from prebake.settings import Store
from storage.objects import open_objects
from storage.snapshot import publish_snapshot

ROUTES = Routes([Route(name="faq", scope="shared", fold="text")], {})
NOW = datetime.now(UTC)

_SYSTEM = "You are the support assistant of a small online shop. Answer in at most three sentences, politely."
# Rounds far shorter than a scheduler's time slice, so that the median is one that nobody interrupted.
_ROUNDS = 400
_PER_ROUND = 80
_DUCKDB_PER_ROUND = 2


def body(number: int) -> dict[str, Any]:
    """The request of that number, as a client would send it and a gateway would parse it."""
    request: dict[str, Any] = orjson.loads(
        orjson.dumps(
            {
                "model": "shop-assistant",
                "messages": [
                    {"role": "system", "content": _SYSTEM},
                    {"role": "user", "content": f"How do I return article {number} if the box is already open?"},
                ],
                "temperature": 0.2,
                "max_tokens": 200,
            }
        )
    )
    return request


def fingerprint(request: dict[str, Any]) -> bytes:
    """The key of one of the benchmark's requests."""
    key = key_request(request, ROUTES)
    if not isinstance(key, Keyed):
        raise AssertionError(f"the benchmark's own request is not served: {key}")
    return key.fingerprint


def answer(number: int, key: bytes, baked_at: datetime = NOW) -> Answer:
    """The answer to the request of that number, good for a week."""
    text = f"Article {number} can be returned within thirty days, opened or not. " * 4
    return Answer(
        key,
        "faq",
        orjson.dumps({"role": "assistant", "content": text}),
        finish_reason="stop",
        prompt_tokens=40,
        completion_tokens=60,
        model="shop-assistant",
        run_id="benchmark",
        baked_at=baked_at,
        expires_at=baked_at + timedelta(days=7),
    )


def run(size: int = 1_000_000) -> Measured:
    """Build the snapshot and the DuckDB table of ``size`` answers, then measure lookups in interleaved rounds."""
    with TemporaryDirectory(prefix="prebake-benchmark-") as folder:
        table = pa.table({"key": [fingerprint(body(number)) for number in range(size)], "number": range(size)})
        table = table.sort_by("key")
        root = Path(folder, "store")
        publish_snapshot(
            open_objects(Store(root=str(root))),
            chain.from_iterable(_answers(table)),
            run_id="benchmark",
            keep=1,
            now=NOW,
        )
        with (
            AnswerStore.open(root / "snapshots") as store,
            _fill_lmdb(Path(folder, "answers.mdb"), table) as raw,
            _fill_duckdb(Path(folder, "answers.duckdb"), table) as connection,
        ):
            chosen = random.Random(1).sample(range(size), min(size, _ROUNDS * _PER_ROUND))
            medians = _measure(store, raw, connection, chosen)
        ours, lmdb_s, duckdb_s = medians["ours"], medians["lmdb"], medians["duckdb"]
        return Measured(
            ratios={"ratio_lmdb": ours / lmdb_s, "ratio_duckdb": duckdb_s / ours},
            sizes={"answers": size, "lookups": len(chosen), "snapshot_bytes": store.manifest.bytes},
            figures={"ours_us": ours * 1e6, "lmdb_us": lmdb_s * 1e6, "duckdb_us": duckdb_s * 1e6, **_compressed()},
        )


def _compressed() -> dict[str, float]:
    """Trained on half of the example's answers, measured on the other half."""
    texts = [text for route in corpus.ROUTES for text in corpus.answers(route).values()]
    messages: list[Any] = [orjson.dumps({"role": "assistant", "content": text}) for text in texts]
    dictionary = zstandard.train_dictionary(4096, messages[::2])
    compressor, decompress = (
        zstandard.ZstdCompressor(level=19, dict_data=dictionary),
        zstandard.ZstdDecompressor(dict_data=dictionary).decompress,
    )
    unseen = messages[1::2]
    values = [compressor.compress(message) for message in unseen]
    times = []
    for _ in range(_ROUNDS):
        start = perf_counter()
        for value in values:
            decompress(value)
        times.append((perf_counter() - start) / len(values))
    return {"zstd_size": sum(map(len, values)) / sum(map(len, unseen)), "zstd_us": median(times) * 1e6}


def _answers(table: pa.Table) -> Iterator[list[Answer]]:
    for batch in table.to_batches(max_chunksize=10_000):
        yield [answer(number, key) for key, number in zip(*map(pa.Array.to_pylist, batch.columns), strict=True)]


def _fill_lmdb(file: Path, table: pa.Table) -> lmdb.Environment:
    """The same records, packed as densely as LMDB can."""
    loose = file.with_suffix(".loose")
    with lmdb.open(str(loose), subdir=False, lock=False, sync=False, map_size=2**40) as environment:
        with environment.begin(write=True) as transaction:
            for batch in _answers(table):
                for row in batch:
                    transaction.put(row.fingerprint, record_of(row), append=True)
        environment.copy(str(file), compact=True)
    return lmdb.open(str(file), subdir=False, readonly=True, lock=False, map_size=file.stat().st_size)


def _fill_duckdb(file: Path, table: pa.Table) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(str(file))
    connection.execute("create table answers (key blob primary key, message blob)")
    for batch in _answers(table):
        rows = pa.table({"key": [row.fingerprint for row in batch], "message": [row.message_json for row in batch]})
        connection.execute("insert into answers from rows")  # DuckDB finds the variable by its name
        del rows
    connection.execute("checkpoint")
    return connection


def _measure(
    store: AnswerStore, raw: lmdb.Environment, connection: duckdb.DuckDBPyConnection, chosen: Sequence[int]
) -> dict[str, float]:
    """Median seconds per lookup over many short rounds, each on other answers."""
    parts = [chosen[start : start + _PER_ROUND] for start in range(0, len(chosen), _PER_ROUND)]
    keys = [[fingerprint(body(number)) for number in part] for part in parts]
    with raw.begin() as transaction:
        for _ in transaction.cursor():  # map every page, as after a while of serving; ours likewise:
            pass
        for key in transaction.cursor().iternext(values=False):
            store.get(key, NOW)
        return interleaved(
            {
                "ours": partial(_ours, store, iter(parts)),
                "lmdb": partial(_lmdb, transaction, iter(keys)),
                "duckdb": partial(_duckdb, connection, iter(keys)),
            },
            len(parts),
        )


def _ours(store: AnswerStore, parts: Iterator[Sequence[int]]) -> float:
    bodies = [body(number) for number in next(parts)]
    start = perf_counter()
    for request in bodies:
        found = store.lookup(request, ROUTES).answer
        if found is None:
            raise AssertionError("an answer that was published was not found")
        _ready = (found.message_json, found.finish_reason, found.prompt_tokens, found.completion_tokens)
    return (perf_counter() - start) / len(bodies)


def _lmdb(transaction: lmdb.Transaction, parts: Iterator[Sequence[bytes]]) -> float:
    keys = next(parts)
    get = transaction.get
    start = perf_counter()
    for key in keys:
        if get(key) is None:
            raise AssertionError("a key that was published was not found")
    return (perf_counter() - start) / len(keys)


def _duckdb(connection: duckdb.DuckDBPyConnection, parts: Iterator[Sequence[bytes]]) -> float:
    keys = next(parts)[:_DUCKDB_PER_ROUND]
    start = perf_counter()
    for key in keys:
        if connection.execute("select message from answers where key = ?", [key]).fetchone() is None:
            raise AssertionError("a key that was inserted was not found")
    return (perf_counter() - start) / len(keys)
