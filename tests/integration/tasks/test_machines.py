"""A night baked by workers elsewhere, on a real ledger and store; the workers here are threads that need no model."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine import Completion, Prompt, Status
from prebake.errors import EngineError, Interrupted, SettingsError
from prebake.prices import GpuPrice
from prebake.settings import Capacity, Prices, Settings
from prebake.settings import Engine as EngineSettings
from prebake.stop import Stop
from storage.store import Store, open_store
from storage.workers import Budget, Done
from tasks.bake import BakeReport, bake
from tasks.machines import bake_on_machines
from tasks.night import machines_of
from tasks.plan_watch import Need, PlanWatch
from tests.baking import PLAN_ID, add_plan, committed, question


@dataclass
class Echo:
    """An engine that answers each prompt with two tokens, one prompt a step, while it may."""

    model: str = "echo"
    gate: threading.Event = field(default_factory=threading.Event)
    prompts: list[Prompt] = field(default_factory=list)
    capacity: int = 4
    restarts: int = 0

    @property
    def in_flight(self) -> int:
        return len(self.prompts)

    def add(self, prompt: Prompt) -> None:
        self.prompts.append(prompt)

    def step(self) -> list[Completion]:
        if not self.gate.wait(0.02):
            return []
        said = {"role": "assistant", "content": "so"}
        return [
            Completion(self.prompts.pop(0).key, Status.ANSWERED, "stop", said, prompt_tokens=5, completion_tokens=2)
        ]

    def salvage(self) -> list[Completion]:
        left, self.prompts = self.prompts, []
        return [Completion(prompt.key, Status.PARTIAL) for prompt in left]

    def close(self) -> None:
        pass


class Threads:
    """Machines whose workers are threads of this process."""

    def __init__(self, gate: threading.Event, dies: Callable[[int], bool] = lambda _number: False) -> None:
        self.gate, self._dies = gate, dies
        self.stops: list[Stop] = []
        self.threads: list[threading.Thread] = []
        self.needs: list[Need] = []
        self.most = 0
        self._said: list[str] = []

    def __call__(self, store: Store, settings: Settings, plan_id: str, run_id: str) -> Threads:
        self._who: Any = (store, settings, plan_id, run_id)
        return self

    def tend(self, need: Need) -> list[str]:
        self.needs.append(need)
        said, self._said = self._said, []
        for _ in range(need.workers - self.running()):
            stop, number = Stop(), len(self.threads)
            thread = threading.Thread(target=self._work, args=(stop, number))
            thread.start()
            self.stops.append(stop)
            self.threads.append(thread)
        self.most = max(self.most, self.running())
        return said

    def running(self) -> int:
        return sum(thread.is_alive() for thread in self.threads)

    def stop(self, within_s: float) -> None:
        for stop in self.stops:
            stop.request("the night is over")
        for thread in self.threads:
            thread.join(within_s)

    def _work(self, stop: Stop, number: int) -> None:
        if self._dies(number):
            self._said.append(f"worker {number} died")
            return
        store, settings, plan_id, run_id = self._who
        engine = Echo(gate=self.gate)
        with suppress(Interrupted):
            bake(store, settings, plan_id, run_id=run_id, owner=f"thread {number}", engine=engine, stop=stop)


@pytest.fixture
def gate() -> threading.Event:
    """Open: the workers answer."""
    opened = threading.Event()
    opened.set()
    return opened


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return _with(
        settings,
        engine=EngineSettings(flush_s=0.1, flush_answers=8, lease_s=4.0),
        capacity=Capacity(max_machines=3),
        prices=Prices(gpu=GpuPrice(usd_per_hour=3600)),
    )


def _with(settings: Settings, **sections: Any) -> Settings:
    return settings.model_copy(update=sections)


def _bake(store: Store, settings: Settings, machines: Threads, **options: Any) -> BakeReport:
    return bake_on_machines(store, settings, PLAN_ID, run_id="night", make=machines, **options)


def test_several_workers_bake_a_plan_once_and_the_report_is_their_sum(
    store: Store, settings: Settings, gate: threading.Event
) -> None:
    planned = add_plan(store, settings, [question(n) for n in range(200)], shard_size=10)
    machines = Threads(gate)
    report = _bake(store, settings, machines)
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
    assert (report.answers, report.prompt_tokens, report.completion_tokens) == (200, 1000, 400)
    assert (report.shards, report.unpaid, report.late) == (20, 0, 0)
    assert machines.most == 3
    assert machines.running() == 0
    spent = store.ledger.workers.of_plan(PLAN_ID)
    assert report.gpu_usd == pytest.approx(sum(worker.booked_usd for worker in spent))
    assert {worker.end for worker in spent} == {"done"}


def test_workers_share_a_plan_through_s3_and_postgresql(
    s3_settings: Settings, postgres_url: str, settings: Settings, gate: threading.Event
) -> None:
    place = s3_settings.store.model_copy(update={"ledger_url": postgres_url})
    shared = _with(settings, store=place, privacy=s3_settings.privacy)
    with open_store(shared) as store:
        planned = add_plan(store, shared, [question(n) for n in range(60)], shard_size=10)
        assert _bake(store, shared, Threads(gate)).answers == 60
        assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)


def test_a_plan_that_is_baked_needs_no_machines(store: Store, settings: Settings, gate: threading.Event) -> None:
    add_plan(store, settings, [question(n) for n in range(3)])
    _bake(store, settings, Threads(gate))
    second = Threads(gate)
    assert _bake(store, settings, second) == BakeReport(seconds=pytest.approx(0, abs=60))
    assert second.needs == []


def test_a_worker_that_died_is_replaced_and_there_are_never_more_than_needed(
    store: Store, settings: Settings, gate: threading.Event
) -> None:
    planned = add_plan(store, settings, [question(n) for n in range(60)], shard_size=10)
    machines = Threads(gate, dies=lambda number: number < 2)
    _bake(store, settings, machines)
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
    assert len(machines.threads) >= 3
    assert machines.most <= 3


def test_workers_that_all_die_end_the_night_with_what_the_last_one_said(
    store: Store, settings: Settings, gate: threading.Event
) -> None:
    add_plan(store, settings, [question(n) for n in range(60)], shard_size=10)
    with pytest.raises(EngineError, match=r"in a row ended without one more answer; the last: worker \d+ died"):
        _bake(store, _with(settings, capacity=Capacity(max_machines=1)), Threads(gate, dies=lambda _number: True))


def test_no_more_workers_than_shards_are_started(store: Store, settings: Settings, gate: threading.Event) -> None:
    add_plan(store, settings, [question(n) for n in range(40)], shard_size=20)
    machines = Threads(gate)
    _bake(store, settings, machines)
    assert {need.workers for need in machines.needs} <= {1, 2}


def test_a_stop_of_the_night_drains_its_workers(store: Store, settings: Settings) -> None:
    add_plan(store, settings, [question(n) for n in range(60)], shard_size=10)
    machines, stop = Threads(threading.Event()), Stop()
    threading.Timer(3, stop.request, ["SIGTERM"]).start()
    with pytest.raises(Interrupted, match="SIGTERM"):
        _bake(store, settings, machines, stop=stop)
    assert machines.threads
    assert machines.running() == 0
    assert store.ledger.progress(PLAN_ID).leased == 0


def test_at_the_time_when_answers_must_be_ready_the_night_ends_with_what_it_has(
    store: Store, settings: Settings
) -> None:
    add_plan(store, settings, [question(n) for n in range(60)], shard_size=10)
    machines = Threads(threading.Event())
    report = _bake(store, settings, machines, ready_at=datetime.now(UTC) + timedelta(seconds=3))
    assert (report.answers, report.late, report.unpaid) == (0, 60, 0)
    assert machines.running() == 0


def test_time_in_hand_takes_fewer_machines(store: Store, settings: Settings, gate: threading.Event) -> None:
    add_plan(store, settings, [question(n) for n in range(40)], shard_size=2)  # planned: one second each
    few, many = Threads(gate), Threads(gate)
    _bake(store, settings, few, ready_at=datetime.now(UTC) + timedelta(hours=8))
    assert few.needs[0].workers == 1
    assert few.needs[0].work_h == pytest.approx(40 / 3600)
    # What is left of a quarter of an hour after a cold start of 0.2 h is 3 minutes: work for two machines.
    long = [question(n) for n in range(40, 340)]
    add_plan(store, settings, long, shard_size=2)
    _bake(store, settings, many, ready_at=datetime.now(UTC) + timedelta(hours=0.25))
    assert many.needs[0].workers == 2


def test_what_is_left_is_measured_in_hours_of_a_machine_of_speed_one(store: Store, settings: Settings) -> None:
    add_plan(store, settings, [question(n) for n in range(40)])  # planned: one second each
    watch = PlanWatch(store, settings, PLAN_ID)
    assert watch.need().work_h == pytest.approx(40 / 3600)
    workers = store.ledger.workers
    for speed, busy_s, answers in ((1.0, 40.0, 10), (4.0, 20.0, 20)):  # four seconds an answer, on the slow one
        worker = workers.join(PLAN_ID, "run", "host", 1.0, 60, speed)
        workers.book(worker, busy_s, Budget(), 60, Done(busy_s, answers))
    watch.look()
    assert watch.need().work_h == pytest.approx(40 * 4 / 3600)


def test_the_budget_holds_over_all_workers_and_ends_the_night(
    store: Store, settings: Settings, gate: threading.Event
) -> None:
    bodies = [question(n, max_tokens=1 if n < 20 else 400) for n in range(40)]
    add_plan(store, settings, bodies, shard_size=4)
    price = GpuPrice(usd_per_hour=3600, prompt_tokens_per_s=1e9, completion_tokens_per_s=2)  # 400 tokens: 200 s
    poor = _with(settings, prices=Prices(gpu=price), plan=settings.plan.model_copy(update={"budget_usd": 150.0}))
    machines = Threads(gate)
    report = _bake(store, poor, machines)
    assert report.gpu_usd <= 150
    assert report.answers < 40
    assert report.unpaid == 40 - report.answers
    assert {row["prompt"] for row in committed(store)} <= {body["messages"][-1]["content"] for body in bodies[:20]}
    assert "budget" in {worker.end for worker in store.ledger.workers.of_plan(PLAN_ID)}


def test_a_night_of_prefects_from_the_command_line_is_a_setting_to_correct(settings: Settings) -> None:
    with pytest.raises(SettingsError, match=r"capacity\.workers = prefect"):
        machines_of(_with(settings, capacity=Capacity(workers="prefect")))


def test_worker_processes_that_cannot_load_their_model_say_why(store: Store, settings: Settings) -> None:
    nowhere = settings.engine.model_copy(update={"model": "/no/such/model"})
    alone = _with(settings, engine=nowhere, capacity=Capacity(workers="processes", max_machines=1))
    add_plan(store, alone, [question(n) for n in range(3)])
    make = machines_of(alone)
    assert make is not None
    with pytest.raises(EngineError, match="/no/such/model"):
        bake_on_machines(store, alone, PLAN_ID, run_id="night", make=make)
    assert store.ledger.progress(PLAN_ID).leased == 0
