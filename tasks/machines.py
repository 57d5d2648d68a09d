"""A night baked by workers elsewhere: how many there should be now, until the plan is done, the budget or time is up.

In: a plan, and ``Machines`` that can start and stop workers (processes here, runs of Prefect, groups of a cloud). Out:
the report of the bake over all of them, read from what they committed. The ledger says who is alive, what is done and
what is spent; whoever ends before that, by whatever cause, is replaced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from math import inf
from typing import Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capacity.size import machines_needed
from prebake.errors import BudgetError, EngineError
from prebake.progress import Progress, Silent
from prebake.pulse import Pace, Pulse, seconds_for
from prebake.settings import Settings
from prebake.stop import Stop
from storage.store import Store
from storage.workers import Worker
from tasks.bake import BakeReport
from tasks.owner import owner_name
from tasks.purse import budget_of

_LOOK_S: Final = 2.0
_END_S: Final = 60.0  # an engine that is done with its work closes within this time
_DRAIN_S: Final = 20.0  # Prefect kills a night 30 s after its cancel
_MEASURED_S: Final = 60.0  # from so many seconds of work on, the machines' measured speed counts
_TRIES: Final = 3  # a worker's place is filled so many times in a row without one answer more

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Need:
    """What a night needs now: ``workers``, for ``work_h`` machine hours within the next ``left_h`` hours.

    ``most`` workers would all find work; with none wanted there is nothing left to do, or nothing to pay it with.
    """

    workers: int
    most: int
    work_h: float
    left_h: float = inf
    budget_usd: float = inf


class Machines(Protocol):
    """Where workers run."""

    def tend(self, need: Need) -> list[str]:
        """Start what is missing, never more than needed; returns what those said that failed or died since."""

    def running(self) -> int:
        """Workers that were started, or asked for, and have not ended."""

    def stop(self, within_s: float) -> None:
        """Ask all to stop, and wait for their end so long at most."""


MakeMachines = Callable[[Store, Settings, str, str], Machines]
"""Makes the machines of one bake, from store, settings, plan and run."""


def bake_on_machines(
    store: Store,
    settings: Settings,
    plan_id: str,
    *,
    run_id: str,
    make: MakeMachines,
    ready_at: datetime | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> BakeReport:
    """Bake all of the plan that is not baked yet on other machines; their workers are gone when this returns.

    Returns when the plan is done, the budget is spent, or it is ``ready_at`` (UTC). Raises Interrupted when ``stop``
    was requested (the workers drain first), EngineError where no worker gets anywhere, and what the machines raise.
    """
    progress, stop = progress or Silent(), stop or Stop()
    watch = _Watch(store, settings, plan_id, run_id, ready_at)
    if watch.now.rows < watch.now.answers:
        machines = make(store, settings, plan_id, run_id)
        try:
            with progress.watch(watch.pulse):
                _until_over(watch, machines, stop)
            if watch.done:
                _wait_for_end(machines)
        finally:
            machines.stop(_DRAIN_S)
        stop.check()
    return watch.report()


def _until_over(watch: _Watch, machines: Machines, stop: Stop) -> None:
    """Keep as many workers as are needed, until there is nothing more that they should do."""
    fruitless = 0
    while True:
        rows = watch.now.rows
        watch.look()
        need = watch.need()
        if watch.done or watch.late or (not need.workers and not machines.running()):
            return
        said = machines.tend(need)
        for line in said:
            _logger.warning("a bake worker ended: %s", line)
        fruitless = 0 if watch.now.rows > rows else fruitless + len(said)
        if fruitless > _TRIES * need.workers:
            raise EngineError(f"{fruitless} bake workers in a row ended without one more answer; the last: {said[-1]}")
        if stop.wait(_LOOK_S):
            return


def _wait_for_end(machines: Machines) -> None:
    give_up = time.monotonic() + _END_S
    while machines.running() and time.monotonic() < give_up:
        time.sleep(_LOOK_S / 4)


class _Watch:
    """What the ledger says of one plan, from the moment a night begins to bake it."""

    def __init__(self, store: Store, settings: Settings, plan_id: str, run_id: str, ready_at: datetime | None) -> None:
        self._store, self._settings, self._ready_at = store, settings, ready_at
        self._plan_id, self._run_id = plan_id, run_id
        self._started = time.monotonic()
        self._parts_before = {part.key for part in store.ledger.parts(plan_id)}
        self._ended_before = {worker.worker_id for worker in self._all() if not worker.alive}
        self._planned_s = _planned_s(store, plan_id)
        self.now = self._begin = store.ledger.progress(plan_id)
        self._workers = self._mine(self._all())
        self._answers = Pace(self._started, self.now.rows)
        self._tokens = Pace(self._started, self._completion_tokens())

    def look(self) -> None:
        """Read the ledger anew."""
        self.now = self._store.ledger.progress(self._plan_id)
        self._workers = self._mine(self._all())

    def pulse(self) -> Pulse:
        """The bake as it was at the last look; counts and money are those of all its workers."""
        clock, now, workers = time.monotonic(), self.now, self._workers
        at_work = any(worker.alive and worker.busy_s > 0 for worker in workers)
        return Pulse(
            plan_id=self._plan_id,
            run_id=self._run_id,
            owner=owner_name(),
            answers=now.rows,
            planned=now.answers,
            shards_pending=now.pending,
            shards_leased=now.leased,
            shards_done=now.done,
            seconds_left=seconds_for(now.answers - now.rows, self._answers.per_s(clock, now.rows)),
            completion_tokens=self._completion_tokens(),
            resumed_tokens=sum(worker.resumed_tokens for worker in workers),
            tokens_per_s=self._tokens.per_s(clock, self._completion_tokens()) if at_work else None,
            seconds=clock - self._started,
            usd=sum(worker.booked_usd for worker in workers),
            budget_usd=budget_of(self._settings).usd,
        )

    @property
    def done(self) -> bool:
        """Whether every shard is finished."""
        return self.now.done == self.now.shards

    @property
    def late(self) -> bool:
        """Whether the answers must be ready now."""
        return self._left_h() <= 0

    def need(self) -> Need:
        """The machines that are needed now."""
        spent_usd = sum(worker.booked_usd for worker in self._all())
        budget = budget_of(self._settings).usd
        left_usd = inf if budget is None else max(budget - spent_usd, 0.0)
        work_h = self._work_s() / 3600
        most = min(self._settings.capacity.max_machines, self.now.shards - self.now.done)
        workers = 0 if self._broke() else self._wanted(work_h, most)
        return Need(workers, most, work_h, self._left_h(), left_usd)

    def report(self) -> BakeReport:
        """The bake over all its workers, from the parts that were committed since the night began with it."""
        self.look()
        parts = [part for part in self._store.ledger.parts(self._plan_id) if part.key not in self._parts_before]
        status, prompt_tokens, completion_tokens = _sums(self._store, [part.key for part in parts])
        busy_s = max((worker.busy_s for worker in self._workers), default=0.0)
        left = self.now.answers - self.now.rows
        broke = self._broke()
        return BakeReport(
            answers=status.get("answered", 0),
            truncated=status.get("truncated", 0),
            refused=status.get("refused", 0),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            seconds=round(time.monotonic() - self._started, 3),
            tokens_per_s=round(completion_tokens / busy_s, 1) if busy_s else 0.0,
            gpu_usd=sum(worker.booked_usd for worker in self._workers),
            shards=self.now.done - self._begin.done,
            unpaid=left if broke else 0,
            late=0 if broke else left,
            resumed_tokens=sum(worker.resumed_tokens for worker in self._workers),
        )

    def _all(self) -> list[Worker]:
        return self._store.ledger.workers.of_plan(self._plan_id)

    def _mine(self, workers: list[Worker]) -> list[Worker]:
        """Those of this bake; a night that was killed left some that are still at work."""
        return [worker for worker in workers if worker.worker_id not in self._ended_before]

    def _completion_tokens(self) -> int:
        return sum(worker.completion_tokens for worker in self._workers)

    def _broke(self) -> bool:
        """Whether a worker found nothing left that the budget pays."""
        return any(worker.end == "budget" for worker in self._workers)

    def _left_h(self) -> float:
        return inf if self._ready_at is None else (self._ready_at - datetime.now(UTC)).total_seconds() / 3600

    def _work_s(self) -> float:
        """Seconds that one machine needs for what is left: as measured, before that as planned."""
        left = self.now.answers - self.now.rows
        busy_s = sum(worker.busy_s for worker in self._workers)
        answers = sum(worker.answers for worker in self._workers)
        if answers and busy_s >= _MEASURED_S:
            return left * busy_s / answers
        return left * self._planned_s

    def _wanted(self, work_h: float, most: int) -> int:
        """As many as work can be shared among, and with a deadline no more than that needs."""
        left_h = self._left_h()
        if left_h == inf:
            return most
        at_work = sum(worker.alive and worker.busy_s > 0 for worker in self._workers)
        if at_work * left_h >= work_h:
            return min(at_work, most)
        rate = self._settings.prices.gpu.completion_tokens_per_s
        try:
            needed = machines_needed(
                work_h * 3600 * rate, rate, left_h, cold_start_h=self._settings.capacity.cold_start_h
            )
        except BudgetError:  # no number of machines makes it: as much as can be is ready then
            return most
        return min(max(needed, at_work), most)


def _planned_s(store: Store, plan_id: str) -> float:
    """Seconds of one machine that an answer of the plan takes on average, as the plan expected."""
    wanted = (pc.field("plan_id") == plan_id) & (pc.field("decision") == "bake")
    mean = pc.mean(store.plan.scan().to_table(filter=wanted, columns=["gpu_s"])["gpu_s"]).as_py()
    return float(mean or 0.0)


def _sums(store: Store, keys: list[str]) -> tuple[dict[str, int], int, int]:
    """Answers by status, prompt tokens and completion tokens of the parts."""
    status: dict[str, int] = {}
    tokens = {"prompt_tokens": 0, "completion_tokens": 0}
    for key in keys:
        table: pa.Table = pq.read_table(BytesIO(store.objects.read(key)), columns=["status", *tokens])
        for found in pc.value_counts(table["status"]).to_pylist():
            status[found["values"]] = status.get(found["values"], 0) + found["counts"]
        for name in tokens:
            tokens[name] += pc.sum(table[name]).as_py() or 0
    return status, tokens["prompt_tokens"], tokens["completion_tokens"]
