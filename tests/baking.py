"""Plans to bake: rows in the plan table and shards in the ledger, as the plan step leaves them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from io import BytesIO
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from prebake.request import key_request, model_request
from prebake.settings import Settings
from prebake.tables import ANSWERS, PLAN
from storage.store import Store

PLAN_ID = "plan-1"
DAY = date(2026, 11, 22)


def add_plan(store: Store, settings: Settings, bodies: list[dict[str, Any]], *, shard_size: int = 32) -> list[bytes]:
    """Plan these request bodies, in shards of that size; returns their fingerprints in order."""
    rows = [_row(settings, body, position, shard_size) for position, body in enumerate(bodies)]
    store.plan.append(pa.Table.from_pylist(rows, PLAN.schema))
    store.ledger.add_shards(PLAN_ID, Counter(row["shard_id"] for row in rows))
    return [row["fingerprint"] for row in rows]


def _row(settings: Settings, body: dict[str, Any], position: int, shard_size: int) -> dict[str, Any]:
    keyed = key_request(body, settings.route_table, "acme")
    numbers = dict.fromkeys(("expected_hits", "value_usd", "cost_usd", "gpu_s"), 1.0)
    return {
        "day": DAY,
        "plan_id": PLAN_ID,
        "fingerprint": keyed.fingerprint,
        "route": keyed.route.name,
        "scope": keyed.scope,
        "request": model_request(body, settings.route_table).decode(),
        "prompt": body["messages"][-1]["content"],
        "requests": 2,
        "users": 2,
        "tenants": 1,
        **numbers,
        "decision": "bake",
        "reason": "worth it",
        "shard_id": position // shard_size,
        "position": position % shard_size,
    }


def question(number: int, **fields: Any) -> dict[str, Any]:
    """A request body of its own."""
    return {
        "model": "desk",
        "messages": [{"role": "user", "content": f"question number {number}"}],
        "temperature": 0,
        "max_tokens": 4 + number % 30,
        **fields,
    }


def committed(store: Store) -> list[dict[str, Any]]:
    """The rows of all parts that count."""
    parts = store.ledger.parts(PLAN_ID)
    tables = [pq.read_table(BytesIO(store.objects.read(part.key)), schema=ANSWERS.schema) for part in parts]
    assert [part.rows for part in parts] == [table.num_rows for table in tables]
    return pa.concat_tables(tables).to_pylist() if tables else []


def message(row: dict[str, Any]) -> Any:
    """The assistant message of a row."""
    return orjson.loads(row["message"])


def wait_until(reached: Callable[[], bool], *, within_s: float = 1000) -> None:
    """Until it is so: an engine loads in half a minute on a quiet machine and in many minutes on a busy one."""
    give_up = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < give_up, "waited too long"
        time.sleep(0.05)
