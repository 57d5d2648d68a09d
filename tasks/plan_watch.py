"""One plan while others bake it: how far it is, what it needs, what came of it. In: the ledger. Out: figures.

Whoever starts workers (``tasks/machines.py``, ``tasks/bake_ray.py``) looks here, never at the workers themselves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from math import inf
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capacity.size import machines_needed
from prebake.errors import BudgetError
from prebake.pulse import Pace, Pulse, seconds_for
from prebake.settings import Settings
from storage.store import Store
from storage.workers import Worker
from tasks.bake import BakeReport
from tasks.bake_pulse import budget_usd
from tasks.purse import budget_of

_MEASURED_S: Final = 60.0  # from so many seconds of work on, the machines' measured speed counts


@dataclass(frozen=True)
class Need:
    """What a night needs now: ``workers``, for ``work_h`` hours of a machine of speed 1 in the next ``left_h`` hours.

    ``most`` workers would all find work; with none wanted there is nothing left to do, or nothing to pay it with.
    """

    workers: int
    most: int
    work_h: float
    left_h: float = inf
    budget_usd: float = inf


class PlanWatch:
    """What the ledger says of one plan, from the moment a night begins to bake it."""

    def __init__(self, store: Store, settings: Settings, plan_id: str, ready_at: datetime | None = None) -> None:
        self._store, self._settings, self._plan_id, self._ready_at = store, settings, plan_id, ready_at
        self._started = time.monotonic()
        self._parts_before = {part.key for part in store.ledger.parts(plan_id)}
        self._ended_before = {worker.worker_id for worker in self._all() if not worker.alive}
        self._planned_s = _planned_s(store, plan_id)
        self.now = self._begin = store.ledger.progress(plan_id)
        self._workers = self._mine(self._all())
        self._tokens, self._answers = Pace(self._started, 0), Pace(self._started, self.now.rows)

    def look(self) -> None:
        """Read the ledger anew."""
        self.now = self._store.ledger.progress(self._plan_id)
        self._workers = self._mine(self._all())

    @property
    def done(self) -> bool:
        """Whether every shard is finished."""
        return self.now.done == self.now.shards

    @property
    def at_work(self) -> bool:
        """Whether any worker is alive."""
        return any(worker.alive for worker in self._workers)

    @property
    def late(self) -> bool:
        """Whether the answers must be ready now."""
        return self._left_h() <= 0

    def pulse(self) -> Pulse:
        """How far the bake is, over all its workers, as the ledger was seen last."""
        now, plan, workers = time.monotonic(), self.now, self._workers
        tokens = sum(worker.completion_tokens for worker in workers)
        return Pulse(
            plan_id=self._plan_id,
            answers=plan.rows,
            planned=plan.answers,
            shards_pending=plan.pending,
            shards_leased=plan.leased,
            shards_done=plan.done,
            seconds_left=seconds_for(plan.answers - plan.rows, self._answers.per_s(now, plan.rows)),
            completion_tokens=tokens,
            resumed_tokens=sum(worker.resumed_tokens for worker in workers),
            tokens_per_s=self._tokens.per_s(now, tokens)
            if any(worker.alive and worker.busy_s > 0 for worker in workers)
            else None,
            seconds=now - self._started,
            usd=sum(worker.booked_usd for worker in workers),
            budget_usd=budget_usd(self._settings),
        )

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

    def _broke(self) -> bool:
        """Whether a worker found nothing left that the budget pays."""
        return any(worker.end == "budget" for worker in self._workers)

    def _left_h(self) -> float:
        return inf if self._ready_at is None else (self._ready_at - datetime.now(UTC)).total_seconds() / 3600

    def _work_s(self) -> float:
        """Seconds that a machine of speed 1 needs for what is left: as measured, before that as planned."""
        left = self.now.answers - self.now.rows
        busy_s = sum(worker.busy_s * worker.speed for worker in self._workers)
        answers = sum(worker.answers for worker in self._workers)
        if answers and busy_s >= _MEASURED_S:
            return left * busy_s / answers
        return left * self._planned_s

    def _wanted(self, work_h: float, most: int) -> int:
        """As many as work can be shared among, and with a deadline no more than that needs."""
        left_h = self._left_h()
        if left_h == inf:
            return most
        at_work = [worker.speed for worker in self._workers if worker.alive and worker.busy_s > 0]
        if sum(at_work) * left_h >= work_h:
            return min(len(at_work), most)
        rate = self._settings.prices.gpu.completion_tokens_per_s
        try:
            needed = machines_needed(
                work_h * 3600 * rate, rate, left_h, cold_start_h=self._settings.capacity.cold_start_h
            )
        except BudgetError:  # no number of machines makes it: as much as can be is ready then
            return most
        return min(max(needed, len(at_work)), most)


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
