"""What the tests of the steps share: a query log asked line by line, and a night's baking done by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from io import BytesIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prebake.prices import TokenPrice
from prebake.request import Keyed, key_request, last_user_text, model_request, user_turns
from prebake.routes import Route
from prebake.settings import Prices, Settings
from prebake.settings import Store as StoreSettings
from prebake.tables import ANSWERS, QUERY_LOG
from prebake.user import hash_user
from storage.ledger import Part
from storage.store import Store

DAY = date(2026, 3, 10)
NOW = datetime(2026, 3, 11, 2, tzinfo=UTC)

Ask = Callable[..., bytes]
Bake = Callable[..., list[bytes]]


@pytest.fixture
def settings(tmp_path: object) -> Settings:
    """A shop that shares its answers, with a price for its model."""
    return Settings(
        store=StoreSettings(root=f"{tmp_path}/store"),
        routes=(Route(name="faq", scope="shared", fold="text"),),
        prices=Prices(online={"*": TokenPrice(input_usd_per_million=1, output_usd_per_million=4)}),
    )


@pytest.fixture
def ask(store: Store, settings: Settings) -> Ask:
    """Logs one request per user; returns the fingerprint."""

    def ask(
        prompt: str,
        users: Sequence[str] = ("ann", "bob"),
        *,
        day: date = DAY,
        tenant: str | None = "shop",
        tokens: tuple[int | None, int | None] = (20, 50),
        at_s: int = 0,
        before: Sequence[dict[str, str]] = (),
        **params: object,
    ) -> bytes:
        body = {"model": "gpt", "messages": [*before, {"role": "user", "content": prompt}], **params}
        keyed = key_request(body, settings.route_table, tenant)
        fingerprint = keyed.fingerprint if isinstance(keyed, Keyed) else None
        midnight = datetime.combine(day, datetime.min.time(), UTC)
        rows = [
            {
                "day": day,
                "ts": midnight + timedelta(seconds=at_s + number),
                "route": keyed.route.name if isinstance(keyed, Keyed) else None,
                "tenant": tenant,
                "scope": keyed.scope if isinstance(keyed, Keyed) else None,
                "user_hash": hash_user(user, store.salt),
                "fingerprint": fingerprint,
                "bypass": None if isinstance(keyed, Keyed) else str(keyed),
                "turns": user_turns(body),
                "model": "gpt",
                "request": model_request(body, settings.route_table).decode() if fingerprint else None,
                "prompt": last_user_text(body),
                "prompt_tokens": tokens[0],
                "completion_tokens": tokens[1],
                "cache": None,
                "source": "test",
            }
            for number, user in enumerate(users)
        ]
        store.query_log.append(pa.Table.from_pylist(rows, schema=QUERY_LOG.schema))
        return fingerprint or b""

    return ask


@pytest.fixture
def bake(store: Store) -> Bake:
    """Answers one shard of a plan as a worker does, through lease and part; returns the fingerprints it answered."""

    def bake(
        plan_id: str,
        *,
        status: str = "answered",
        text: str = "so",
        model: str = "",
        baked_at: datetime = NOW,
        good_for: timedelta = timedelta(days=7),
        finish: bool = True,
    ) -> list[bytes]:
        lease = store.ledger.take_shard(plan_id, "test", 60)
        if lease is None:
            return []
        plan = store.plan.scan().to_table().to_pylist()
        asked = [row for row in plan if row["plan_id"] == plan_id and row["shard_id"] == lease.shard_id]
        rows = [
            {
                **{
                    name: row[name]
                    for name in ("day", "plan_id", "shard_id", "fingerprint", "route", "scope", "prompt")
                },
                "run_id": "run",
                "status": status,
                "finish_reason": {"answered": "stop", "truncated": "length"}.get(status),
                "message": None
                if status == "refused"
                else orjson.dumps({"role": "assistant", "content": f"{text}: {row['prompt']}"}).decode(),
                "error": "too long" if status == "refused" else None,
                "model": model,
                "prompt_tokens": 20,
                "completion_tokens": 512,
                "mean_logprob": -0.1,
                "engine_s": 0.2,
                "baked_at": baked_at,
                "expires_at": baked_at + good_for,
            }
            for row in sorted(asked, key=lambda row: row["position"])
        ]
        buffer = BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=ANSWERS.schema), buffer)
        data = buffer.getvalue()
        key = f"parts/{plan_id}/{lease.shard_id}-{lease.fence}.parquet"
        store.objects.write(key, data)
        store.ledger.add_part(lease, Part(key, len(rows), len(data), sha256(data).hexdigest()))
        if finish:
            store.ledger.finish_shard(lease)
        return [row["fingerprint"] for row in rows]

    return bake
