"""Plans for benchmarks that bake: a help desk's prompts, as rows and shards that the plan step would leave."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from hashlib import sha256
from typing import Any

import orjson
import pyarrow as pa

from prebake.tables import PLAN
from storage.store import Store

ROUTE = "bench"
_TEXT = "how do I reset my password where can find the invoice of France city river quick brown fox"


def add_plan(store: Store, plan_id: str, prompts: Sequence[dict[str, Any]], *, shard_size: int = 256) -> list[bytes]:
    """Plan these prompts (``messages`` and ``params`` each); returns their fingerprints in order."""
    rows = [_row(plan_id, number, shard_size, prompt) for number, prompt in enumerate(prompts)]
    store.plan.append(pa.Table.from_pylist(rows, PLAN.schema))
    store.ledger.add_shards(plan_id, Counter(row["shard_id"] for row in rows))
    return [row["fingerprint"] for row in rows]


def messages(number: int) -> list[dict[str, str]]:
    """What prompt ``number`` asks; no two are the same."""
    chance = random.Random(number)
    text = " ".join(chance.choices(_TEXT.split(), k=chance.randint(5, 40)))
    return [{"role": "system", "content": "You are a help desk."}, {"role": "user", "content": f"{text} {number}"}]


def limits(size: int, draw: Callable[[random.Random], int]) -> list[int]:
    """So many answer lengths in tokens, the same ones each time."""
    chance = random.Random(7)
    return [draw(chance) for _ in range(size)]


def uneven(mean_log: float, sigma: float, most: int) -> Callable[[random.Random], int]:
    """Lengths of real answers are roughly log-normal: many short ones, a few that reach the limit."""
    return lambda chance: max(4, min(most, int(chance.lognormvariate(mean_log, sigma))))


def _row(plan_id: str, number: int, shard_size: int, prompt: dict[str, Any]) -> dict[str, Any]:
    request = orjson.dumps({"model": "bench", **prompt}).decode()
    return {
        "day": date(2026, 1, 1),
        "plan_id": plan_id,
        "fingerprint": sha256(request.encode()).digest()[:16],
        "route": ROUTE,
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
        "shard_id": number // shard_size,
        "position": number % shard_size,
    }
