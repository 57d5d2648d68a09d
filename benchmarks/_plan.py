"""Plans for benchmarks that bake: prompts of a help desk, as the rows and shards that the plan step would leave.

A prompt is a dictionary with ``messages`` and ``params``, as a request has them.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
ROUTE = Route(name="bench", scope="shared", night=Night(temperature=0))
SHARD = 256
_TEXT = "how do I reset my password where can find the invoice of France city river quick brown fox"


def messages(number: int) -> list[dict[str, str]]:
    """What prompt ``number`` asks; no two are the same."""
    chance = random.Random(number)
    text = " ".join(chance.choices(_TEXT.split(), k=chance.randint(5, 40)))
    return [{"role": "system", "content": "You are a help desk."}, {"role": "user", "content": f"{text} {number}"}]


def prompt_of(messages: list[dict[str, str]], limit: int) -> dict[str, Any]:
    """A prompt whose answer has exactly ``limit`` tokens."""
    return {"messages": messages, "params": {"max_tokens": limit, "ignore_eos": True}}


def limits(size: int, draw: Callable[[random.Random], int]) -> list[int]:
    """So many answer lengths in tokens, the same ones each time."""
    chance = random.Random(7)
    return [draw(chance) for _ in range(size)]


def uneven(mean_log: float, sigma: float, most: int) -> Callable[[random.Random], int]:
    """Lengths of real answers are roughly log-normal: many short ones, a few that reach the limit."""
    return lambda chance: max(4, min(most, int(chance.lognormvariate(mean_log, sigma))))


def plan_row(place: int, prompt: dict[str, Any], *, plan_id: str = PLAN_ID, shard_size: int = SHARD) -> dict[str, Any]:
    """The row of a prompt at that place in the night."""
    request = orjson.dumps({"model": "bench", **prompt}).decode()
    return {
        "day": date(2026, 1, 1),
        "plan_id": plan_id,
        "fingerprint": sha256(request.encode()).digest()[:16],
        "route": ROUTE.name,
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
        "shard_id": place // shard_size,
        "position": place % shard_size,
    }


def add_plan(store: Store, plan_id: str, prompts: Sequence[dict[str, Any]], *, shard_size: int) -> list[bytes]:
    """Plan these prompts; returns their fingerprints in order."""
    rows = [plan_row(n, prompt, plan_id=plan_id, shard_size=shard_size) for n, prompt in enumerate(prompts)]
    store.plan.append(pa.Table.from_pylist(rows, PLAN.schema))
    store.ledger.add_shards(plan_id, Counter(row["shard_id"] for row in rows))
    return [row["fingerprint"] for row in rows]


@contextmanager
def planned(engine: EngineSettings, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[Store, Settings]]:
    """A store on a temporary folder with these rows of the plan table in it, and their shards in the ledger."""
    with tempfile.TemporaryDirectory(prefix="prebake-bench-") as folder:
        settings = Settings(store=StoreSettings(root=folder), engine=engine, routes=(ROUTE,))
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
