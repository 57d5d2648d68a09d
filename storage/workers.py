"""The workers of a plan as rows of the ledger: who is alive, what each may spend, how fast each is.

In: each worker's bookings, made before the money is spent. Out: a budget that holds over all workers, on any machines,
and what a night needs to know to replace those that are gone. What a killed worker had booked counts as spent.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Connection, func, insert, select, update

from storage.ledger_database import LedgerDatabase
from storage.ledger_schema import workers

End = Literal["done", "budget", "stopped", "failed"]
"""How a worker ended: no work left, nothing left that the budget pays, asked to stop, by an error."""


@dataclass(frozen=True)
class Worker:
    """One worker: ``booked_s`` GPU seconds are spent or may be next; ``busy_s`` its engine was at work.

    ``alive``: it has not ended, and was heard of within its lease. ``speed``: of its machine, over that of the one that
    the prices describe.
    """

    worker_id: str
    run_id: str
    owner: str
    usd_per_hour: float
    started_at: datetime
    booked_s: float
    busy_s: float
    answers: int
    completion_tokens: int
    resumed_tokens: int
    end: End | None
    alive: bool
    speed: float

    @property
    def booked_usd(self) -> float:
        """Dollars spent, or booked."""
        return self.booked_s * self.usd_per_hour / 3600


@dataclass(frozen=True)
class Budget:
    """The most that all workers of a plan may spend together; None: no limit."""

    gpu_s: float | None = None
    usd: float | None = None

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.gpu_s is not None or self.usd is not None


@dataclass(frozen=True)
class Done:
    """What a worker has done so far."""

    busy_s: float = 0.0
    answers: int = 0
    completion_tokens: int = 0
    resumed_tokens: int = 0


class Workers:
    """The table of workers."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database

    def join(
        self, plan_id: str, run_id: str, owner: str, usd_per_hour: float, lease_s: float, speed: float = 1.0
    ) -> str:
        """Note that a worker begins; returns its id. It counts as alive for ``lease_s`` after each word from it."""
        worker_id = secrets.token_hex(8)

        def work(connection: Connection) -> None:
            if connection.execute(select(workers.c.worker_id).where(workers.c.worker_id == worker_id)).first():
                return  # this very call, tried again after its commit's answer was lost
            now = self._database.now(connection)
            row = {
                "worker_id": worker_id,
                "plan_id": plan_id,
                "run_id": run_id,
                "owner": owner,
                "usd_per_hour": usd_per_hour,
                "speed": speed,
                "started_at": now,
                "alive_until": now + timedelta(seconds=lease_s),
                "booked_s": 0.0,
                **vars(Done()),
            }
            connection.execute(insert(workers).values(row))

        self._database.run(work)
        return worker_id

    def book(self, worker_id: str, booked_s: float, budget: Budget, lease_s: float, done: Done) -> bool:
        """Raise what a worker may spend to ``booked_s`` in all, and say that it is alive; False: no budget for it.

        A refusal leaves the booking as it was. Bookings of one plan are made one after the other, so the budget holds
        whoever books at the same moment.
        """

        def work(connection: Connection) -> bool:
            table = workers.c
            plan_id = select(table.plan_id).where(table.worker_id == worker_id).scalar_subquery()
            ours = table.plan_id == plan_id
            if budget.limited:
                # Everybody locks all rows there are, so two bookings always meet at one; the sum is read after that.
                connection.execute(select(table.worker_id).where(ours).order_by(table.worker_id).with_for_update())
            row = connection.execute(
                select(table.booked_s, table.usd_per_hour).where(table.worker_id == worker_id)
            ).one()
            more_s = booked_s - row.booked_s
            granted = more_s <= 0 or _pays(connection, plan_id, more_s, more_s * row.usd_per_hour / 3600, budget)
            until = self._database.now(connection) + timedelta(seconds=lease_s)
            values = {"alive_until": until, **vars(done), **({"booked_s": booked_s} if granted else {})}
            connection.execute(update(workers).where(table.worker_id == worker_id).values(values))
            return granted

        return self._database.run(work)

    def leave(self, worker_id: str, spent_s: float, done: Done, end: End) -> None:
        """Note a worker's end: what it booked and did not spend is free for others."""

        def work(connection: Connection) -> None:
            now = self._database.now(connection)
            values = {"booked_s": spent_s, "ended_at": now, "alive_until": now, "end": end, **vars(done)}
            connection.execute(update(workers).where(workers.c.worker_id == worker_id).values(values))

        self._database.run(work)

    def of_plan(self, plan_id: str) -> list[Worker]:
        """The workers that the plan has had, in the order of their start."""

        def work(connection: Connection) -> list[Worker]:
            now = self._database.now(connection)
            rows = connection.execute(
                select(workers).where(workers.c.plan_id == plan_id).order_by(workers.c.started_at, workers.c.worker_id)
            )
            return [
                Worker(
                    row.worker_id,
                    row.run_id,
                    row.owner,
                    row.usd_per_hour,
                    row.started_at,
                    row.booked_s,
                    row.busy_s,
                    row.answers,
                    row.completion_tokens,
                    row.resumed_tokens,
                    row.end,
                    row.ended_at is None and row.alive_until >= now,
                    row.speed,
                )
                for row in rows
            ]

        return self._database.read(work)


def _pays(connection: Connection, plan_id: object, more_s: float, more_usd: float, budget: Budget) -> bool:
    table = workers.c
    dollars = func.coalesce(func.sum(table.booked_s * table.usd_per_hour / 3600), 0.0)
    booked = select(func.coalesce(func.sum(table.booked_s), 0.0), dollars).where(table.plan_id == plan_id)
    gpu_s, usd = connection.execute(booked).one()
    if budget.gpu_s is not None and gpu_s + more_s > budget.gpu_s:
        return False
    return budget.usd is None or usd + more_usd <= budget.usd
