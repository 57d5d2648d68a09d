"""Baking a plan with real vLLM, a real ledger and a real store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from engine import Completion, Engine, open_engine
from prebake.errors import Interrupted, SettingsError
from prebake.prices import GpuPrice
from prebake.routes import Route
from prebake.settings import Capacity, Settings
from prebake.settings import Engine as EngineSettings
from prebake.stop import Stop
from storage.store import Store
from tasks.bake import BakeReport, bake
from tests.baking import PLAN_ID, add_plan, committed, message, question
from tests.tiny_model import engine_settings_for

pytestmark = pytest.mark.slow

SLOW = "tests.processors:SlowProcessor"


@pytest.fixture
def settings(settings: Settings, engine_settings: EngineSettings) -> Settings:
    """A store of the test's own and the tiny model; parts are small, so that there are many."""
    small = engine_settings.model_copy(update={"flush_answers": 16, "flush_s": 0.5, "lease_s": 5.0})
    return settings.model_copy(update={"engine": small})


def _bake(store: Store, settings: Settings, engine: Engine | None, **options: Any) -> BakeReport:
    return bake(store, settings, PLAN_ID, run_id="run-1", owner="me", engine=engine, **options)


def test_every_prompt_of_the_plan_is_baked_once(store: Store, settings: Settings, engine: Engine) -> None:
    planned = add_plan(store, settings, [question(n) for n in range(150)])
    report = _bake(store, settings, engine)
    rows = committed(store)
    assert Counter(row["fingerprint"] for row in rows) == Counter(planned)
    assert report.answers + report.truncated == 150
    assert (report.refused, report.unpaid, report.shards) == (0, 0, 5)
    assert report.completion_tokens == sum(row["completion_tokens"] for row in rows)
    progress = store.ledger.progress(PLAN_ID)
    assert (progress.done, progress.leased, progress.pending) == (5, 0, 0)
    for row in rows:
        assert row["run_id"] == "run-1"
        assert row["model"] == "tiny"
        assert row["status"] in ("answered", "truncated")
        assert message(row)["role"] == "assistant"
        assert row["expires_at"] - row["baked_at"] == timedelta(days=7)
        assert row["engine_s"] > 0


def test_a_baked_plan_needs_no_engine(store: Store, settings: Settings, engine: Engine) -> None:
    add_plan(store, settings, [question(n) for n in range(3)])
    _bake(store, settings, engine)
    nowhere = settings.model_copy(update={"engine": EngineSettings(model="/no/such/model")})
    assert _bake(store, nowhere, None).answers == 0


def test_a_refused_prompt_is_recorded_with_its_reason_and_not_asked_again(
    store: Store, settings: Settings, engine: Engine
) -> None:
    too_long = question(7, messages=[{"role": "user", "content": "word " * 2000}])
    add_plan(store, settings, [question(1), too_long, question(2)])
    assert _bake(store, settings, engine).refused == 1
    (row,) = [row for row in committed(store) if row["status"] == "refused"]
    assert "maximum context length" in row["error"]
    assert row["message"] is None
    assert _bake(store, settings, engine).refused == 0
    assert len(committed(store)) == 3


class _StopAtFirstAnswer:
    """The engine, and somebody who asks to stop as soon as it has answered anything."""

    def __init__(self, engine: Engine, stop: Stop, until: float = 0.0) -> None:
        self._engine, self._stop, self._until = engine, stop, until

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> list[Completion]:
        done = self._engine.step()
        if done:
            self._stop.request("the test says so", until=self._until)
        return done


@pytest.fixture(scope="module")
def slow_engine(tiny_model: Path) -> Iterator[Engine]:
    """An engine that takes longer for its prompts than the bake for its next look at them, and counts no logprobs."""
    settings = engine_settings_for(tiny_model, args={"logits_processors": [SLOW]}, logprobs=False)
    with closing(open_engine(settings)) as engine:
        yield engine


def test_a_bake_that_was_stopped_goes_on_from_the_very_token(
    store: Store, settings: Settings, engine: Engine, slow_engine: Engine
) -> None:
    limits = [100 + 3 * (n % 100) for n in range(160)]
    planned = add_plan(store, settings, [question(n, max_tokens=m, ignore_eos=True) for n, m in enumerate(limits)])
    stop = Stop()
    stopping = cast(Engine, _StopAtFirstAnswer(slow_engine, stop))
    with pytest.raises(Interrupted, match="the test says so"):
        _bake(store, settings, stopping, stop=stop)
    assert store.ledger.progress(PLAN_ID).leased == 0
    before = committed(store)
    report = _bake(store, settings, engine)
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
    assert report.answers + report.truncated == 160 - len(before)
    assert report.resumed_tokens > 0
    baked = {row["fingerprint"]: row["completion_tokens"] for row in committed(store)}
    assert baked == dict(zip(planned, limits, strict=True))


def test_answers_under_way_are_finished_where_a_notice_leaves_time_and_none_begins(
    store: Store, settings: Settings, engine: Engine
) -> None:
    planned = add_plan(store, settings, [question(n, max_tokens=10 + n, ignore_eos=True) for n in range(160)])
    stop = Stop()
    noticed = _StopAtFirstAnswer(engine, stop, until=time.time() + 600)
    with pytest.raises(Interrupted, match="the test says so"):
        _bake(store, settings, cast(Engine, noticed), stop=stop)
    before = committed(store)
    assert {row["fingerprint"] for row in before} == set(planned[: len(before)])
    assert engine.capacity <= len(before) < len(planned)
    report = _bake(store, settings, engine)
    assert report.resumed_tokens == report.restarted == 0
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)


def test_the_ledger_knows_the_speed_of_the_workers_machine(store: Store, settings: Settings, engine: Engine) -> None:
    add_plan(store, settings, [question(1)])
    fast = settings.model_copy(update={"capacity": Capacity(speed=2)})
    _bake(store, fast, engine)
    assert [worker.speed for worker in store.ledger.workers.of_plan(PLAN_ID)] == [2]


def test_log_probabilities_may_be_left_out(store: Store, settings: Settings, slow_engine: Engine) -> None:
    add_plan(store, settings, [question(n) for n in range(3)])
    _bake(store, settings, slow_engine)
    assert [row["mean_logprob"] for row in committed(store)] == [None] * 3


def test_nothing_is_admitted_whose_worst_case_the_budget_cannot_pay(
    store: Store, settings: Settings, engine: Engine
) -> None:
    add_plan(store, settings, [question(n, max_tokens=10 if n < 3 else 400, ignore_eos=True) for n in range(6)])
    # 30 dollars pay half a minute; by this price 10 tokens can take a second, and 400 tokens forty.
    price = GpuPrice(usd_per_hour=3600, completion_tokens_per_s=10)
    poor = settings.model_copy(
        update={
            "plan": settings.plan.model_copy(update={"budget_usd": 30.0}),
            "prices": settings.prices.model_copy(update={"gpu": price}),
        }
    )
    report = _bake(store, poor, engine)
    assert report.gpu_usd <= 30
    assert {row["completion_tokens"] for row in committed(store)} == {10}
    assert report.unpaid == 3
    assert store.ledger.progress(PLAN_ID).leased == 0


def test_a_plan_that_names_a_vanished_route_says_so_before_an_engine_is_loaded(
    store: Store, settings: Settings
) -> None:
    add_plan(store, settings, [question(1)])
    other = Settings(store=settings.store, engine=settings.engine, routes=(Route(name="other"),))
    with pytest.raises(SettingsError, match=f"no route is called '{settings.routes[0].name}'"):
        _bake(store, other, None)
    assert store.ledger.progress(PLAN_ID).leased == 0


def test_a_shard_that_was_taken_over_is_committed_only_by_its_new_holder(
    store: Store, settings: Settings, engine: Engine
) -> None:
    planned = add_plan(store, settings, [question(n) for n in range(64)])
    silent = store.ledger.take_shard(PLAN_ID, "sleeper", 0.01)
    assert silent is not None
    _bake(store, settings, engine)
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
    assert store.ledger.progress(PLAN_ID).done == 2


def test_a_worker_waits_for_shards_whose_holder_may_be_dead(store: Store, settings: Settings, engine: Engine) -> None:
    planned = add_plan(store, settings, [question(n) for n in range(8)], shard_size=8)
    assert store.ledger.take_shard(PLAN_ID, "killed", 2.0) is not None
    _bake(store, settings, engine)
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
