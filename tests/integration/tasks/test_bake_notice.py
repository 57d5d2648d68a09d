"""A machine that is to be taken away: the cloud's notice stops the bake as a signal would."""

from __future__ import annotations

import pytest

from prebake.errors import Interrupted
from prebake.settings import Capacity, Settings
from storage.store import Store
from tasks.bake import bake
from tests.baking import PLAN_ID, add_plan, question
from tests.integration.capacity.metadata import EC2, serve_metadata


def test_a_preemption_notice_stops_the_bake_and_leaves_the_shard_to_others(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"capacity": Capacity(cloud="aws")})
    add_plan(store, settings, [question(n) for n in range(3)], shard_size=3)
    assert store.ledger.take_shard(PLAN_ID, "another worker", 60) is not None  # so that this one has to wait
    with serve_metadata() as metadata:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
        metadata.items[EC2 + "spot/instance-action"] = '{"action": "terminate", "time": "2026-01-05T03:02:00Z"}'
        with pytest.raises(Interrupted, match="EC2 spot notice"):
            bake(store, settings, PLAN_ID, run_id="run-1", owner="me")
    progress = store.ledger.progress(PLAN_ID)
    assert (progress.rows, progress.leased) == (0, 1)
