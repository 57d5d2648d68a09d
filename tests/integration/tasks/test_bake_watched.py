"""A real bake that is watched: its pulse, its metrics over HTTP, and what the engine lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine import Engine
from prebake.progress import Silent
from prebake.pulse import Look, Pulse
from prebake.settings import Engine as EngineSettings
from prebake.settings import Settings
from prebake.stop import Stop
from storage.ledger import Part
from storage.store import Store
from tasks.bake import BakeReport, bake
from tasks.bake_parts import PartWriter
from tasks.bake_pulse import PulseTaker
from tests.baking import PLAN_ID, add_plan, committed, question
from tests.conftest import free_port


@pytest.fixture
def settings(settings: Settings, engine_settings: EngineSettings) -> Settings:
    """The tiny model, small parts, a budget of half an hour that a dollar an hour makes half a dollar."""
    small = engine_settings.model_copy(update={"flush_answers": 16, "flush_s": 0.5, "metrics_port": free_port()})
    plan = settings.plan.model_copy(update={"budget_gpu_s": 1800.0})
    return settings.model_copy(update={"engine": small, "plan": plan})


class _Watcher(Silent):
    """Does something when the bake begins to be watched, and something at its end, while it can still be looked at."""

    def __init__(self, first: Callable[[Look], Any], last: Callable[[Look], Any]) -> None:
        self._first, self._last = first, last

    @contextmanager
    def watch(self, look: Look) -> Iterator[None]:
        self._first(look)
        yield
        self._last(look)


def _bake(store: Store, settings: Settings, engine: Engine, progress: _Watcher) -> BakeReport:
    return bake(store, settings, PLAN_ID, run_id="run-1", owner="me", engine=engine, progress=progress)


def _scrape(settings: Settings) -> dict[str, float]:
    answer = httpx.get(f"http://127.0.0.1:{settings.engine.metrics_port}/metrics", trust_env=False)
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        " ".join((sample.name.removeprefix("prebake_bake_"), *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.mark.slow
def test_metrics_say_over_http_what_the_report_says_at_the_end(
    store: Store, settings: Settings, engine: Engine
) -> None:
    too_long = question(7, messages=[{"role": "user", "content": "word " * 2000}])
    add_plan(store, settings, [*(question(n) for n in range(100)), too_long])
    scrapes: list[dict[str, float]] = []
    watcher = _Watcher(lambda _look: scrapes.append(_scrape(settings)), lambda _look: scrapes.append(_scrape(settings)))
    report = _bake(store, settings, engine, watcher)
    before, after = scrapes
    assert before[f"info me {PLAN_ID} run-1"] == 1
    assert "tokens_per_second" not in before
    assert (before["plan_answers"], before["plan_answers_done"], before["plan_shards pending"]) == (101, 0, 4)
    assert after["answers_total answered"] == report.answers
    assert after["answers_total truncated"] == report.truncated
    assert after["answers_total refused"] == report.refused == 1
    assert after["tokens_total prompt"] == report.prompt_tokens
    assert after["tokens_total completion"] == report.completion_tokens > 0
    assert after["tokens_per_second"] > 0
    assert after["plan_answers_done"] == 101
    assert after["plan_shards done"] == report.shards == 4
    assert after["left_seconds"] == 0
    assert after["parts_total"] == len(store.ledger.parts(PLAN_ID))
    assert 1 <= after["flushes_total"] <= after["parts_total"]
    assert (after["in_flight"], after["unflushed_answers"], after["leases"], after["leases_lost_total"]) == (0, 0, 0, 0)
    assert after["capacity"] == engine.capacity
    assert 0 <= after["flush_age_seconds"] <= after["seconds_total"]
    assert after["spent_dollars_total"] == pytest.approx(after["seconds_total"] / 3600)
    assert after["budget_dollars"] == 0.5
    assert after["preemption_notices_total"] == 0
    with pytest.raises(httpx.ConnectError):
        _scrape(settings)


@pytest.mark.slow
def test_any_worker_shows_the_whole_plan_with_what_others_bake_of_it(
    store: Store, settings: Settings, engine: Engine
) -> None:
    add_plan(store, settings, [question(n) for n in range(96)])
    _commit_a_shard_as_another_worker(store, "before")
    seen: list[Pulse] = []

    def begin(look: Look) -> None:
        seen.append(look())
        _commit_a_shard_as_another_worker(store, "meanwhile")

    report = _bake(store, settings, engine, _Watcher(begin, lambda look: seen.append(look())))
    assert report.answers + report.truncated == 32
    assert [(pulse.answers, pulse.planned, pulse.shards_done) for pulse in seen] == [(32, 96, 1), (96, 96, 3)]


@pytest.mark.slow
def test_an_engine_that_had_to_be_started_anew_is_seen_in_report_and_metrics(
    store: Store, settings: Settings, engine: Any
) -> None:
    add_plan(store, settings, [question(n) for n in range(32)])
    scrapes: list[dict[str, float]] = []
    watcher = _Watcher(
        lambda _look: os.kill(engine.pid, signal.SIGKILL), lambda _look: scrapes.append(_scrape(settings))
    )
    report = _bake(store, settings, engine, watcher)
    assert report.engine_restarts == 1
    assert scrapes[0]["engine_restarts_total"] == 1
    assert len(committed(store)) == 32


def test_answers_of_a_shard_that_was_taken_over_are_taken_back(store: Store, settings: Settings) -> None:
    add_plan(store, settings, [question(n) for n in range(32)])
    short = settings.engine.model_copy(update={"lease_s": 0.01, "flush_answers": 1})
    stop = Stop()
    writer = PartWriter(store, short, PLAN_ID, "sleeper", stop)
    shard = writer.take()
    assert shard is not None
    while store.ledger.take_shard(PLAN_ID, "other", 60.0) is None:  # its lease runs out: no heart beats yet
        time.sleep(0.01)
    taker = PulseTaker(store.ledger, settings, writer, stop, PLAN_ID, "run-1", "sleeper")
    with writer:
        while not writer.lost:
            time.sleep(0.01)
        writer.put(shard, {"fingerprint": b"finished after the shard was lost"})
        while not writer.flushes:
            writer.check()
            time.sleep(0.01)
        pulse = taker.take()
    assert (pulse.answers, pulse.leases, pulse.leases_lost) == (0, 0, 1)


def test_a_notice_of_the_cloud_is_counted_and_a_signal_is_none(store: Store, settings: Settings) -> None:
    stop = Stop()
    writer = PartWriter(store, settings.engine, PLAN_ID, "me", stop)
    taker = PulseTaker(store.ledger, settings, writer, stop, PLAN_ID, "run-1", "me")
    stop.request("SIGTERM")
    assert taker.take().notices == 0
    stop.request("EC2 spot notice: terminate", notice=True)
    assert taker.take().notices == 1
    assert stop.reason == "SIGTERM"


def _commit_a_shard_as_another_worker(store: Store, name: str) -> None:
    lease = store.ledger.take_shard(PLAN_ID, name, 60.0)
    assert lease is not None
    store.ledger.add_part(lease, Part(f"parts/{name}.parquet", 32, 1, "00"))
    store.ledger.finish_shard(lease)
