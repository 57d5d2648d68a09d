"""A plan of one shared route, for benchmarks that bake: its rows as the plan step writes them, baked into parts."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from hashlib import sha256
from typing import Any

import orjson
import pyarrow as pa

from engine import Engine
from prebake.routes import Night, Route
from prebake.settings import Engine as EngineSettings
from prebake.settings import Settings
from prebake.settings import Store as StoreSettings
from prebake.tables import PLAN
from storage.store import Store, open_store
from tasks.bake import BakeReport, bake

PLAN_ID = "bench"
SHARD = 256


def plan_row(place: int, messages: list[dict[str, str]], limit: int) -> dict[str, Any]:
    """The row of a prompt at that place in the night, whose answer has exactly ``limit`` tokens."""
    params = {"max_tokens": limit, "ignore_eos": True}
    request = orjson.dumps({"messages": messages, "model": "bench", "params": params}).decode()
    return {
        "day": date(2026, 1, 1),
        "plan_id": PLAN_ID,
        "fingerprint": sha256(request.encode()).digest()[:16],
        "route": "bench",
        "scope": "shared",
        "request": request,
        "prompt": "",
        "requests": 1,
        "users": 1,
        "tenants": 1,
        "expected_hits": 1.0,
        "value_usd": 1.0,
        "cost_usd": 1.0,
        "gpu_s": 1.0,
        "decision": "bake",
        "reason": "",
        "shard_id": place // SHARD,
        "position": place % SHARD,
    }


@contextmanager
def planned(engine: EngineSettings, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[Store, Settings]]:
    """A store on a temporary folder with these rows of the plan table in it, and their shards in the ledger."""
    with tempfile.TemporaryDirectory(prefix="prebake-bench-") as folder:
        route = Route(name="bench", scope="shared", night=Night(temperature=0))
        settings = Settings(store=StoreSettings(root=folder), engine=engine, routes=(route,))
        with open_store(settings) as store:
            shards = Counter[int]()

            def counted() -> Iterator[pa.RecordBatch]:
                for batch in batches:
                    shards.update(batch["shard_id"].to_pylist())
                    yield batch

            store.plan.append(pa.RecordBatchReader.from_batches(PLAN.schema, counted()))
            store.ledger.add_shards(PLAN_ID, shards)
            yield store, settings


def bake_plan(settings: EngineSettings, engine: Engine, rows: list[dict[str, Any]]) -> tuple[BakeReport, float]:
    """What the bake of these rows did, and its seconds: from plan rows to parts committed in the ledger."""
    with planned(settings, iter([pa.RecordBatch.from_pylist(rows, PLAN.schema)])) as (store, all_settings):
        started = time.perf_counter()
        report = bake(store, all_settings, PLAN_ID, run_id="bench", owner="bench", engine=engine)
        seconds = time.perf_counter() - started
        assert store.ledger.progress(PLAN_ID).rows == len(rows)  # noqa: S101 - else it measured something else
    return report, seconds
