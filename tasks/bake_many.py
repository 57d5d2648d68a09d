"""Bakes with several engines on one machine: each in a worker process of its own, on GPUs of its own.

Every worker runs the same ``bake`` and takes its shards from the ledger; nothing but the start, a stop and the report
goes between them. A worker that dies is started again; what it had not committed, whoever takes its leases bakes.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, replace
from multiprocessing.connection import Connection, wait
from typing import Final

from prebake.errors import EngineError, Interrupted, StorageError
from prebake.progress import Progress, Silent
from prebake.settings import Settings
from prebake.stop import Stop
from storage.store import Store
from tasks.bake import BakeReport, bake
from tasks.bake_process import Job, Outcome
from tasks.gpus import environments, visible_gpus

LOOK_S: Final = 1.0
_STARTS: Final = 4
_DRAIN_S: Final = 60.0

_logger = logging.getLogger(__name__)


def bake_many(
    store: Store,
    settings: Settings,
    plan_id: str,
    *,
    run_id: str,
    owner: str,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> BakeReport:
    """Bake the plan with ``engine.processes`` worker processes; with one, in this process.

    Returns when the plan is done or the budget spent; what a worker did that died is in the store, but not in the
    report. A worker is started again three times; one that fails leaves the work to the others. Raises what ``bake``
    raises, EngineError if every worker died too often.
    """
    if settings.engine.processes == 1:
        return bake(store, settings, plan_id, run_id=run_id, owner=owner, progress=progress, stop=stop)
    started = time.monotonic()
    with ExitStack() as stack:
        look = stack.enter_context(followed(store, plan_id, progress or Silent()))
        workers = list[_Worker]()
        for number, environment in enumerate(environments(settings.engine, visible_gpus())):
            job = (_share(settings), plan_id, run_id, f"{owner}/{number}")
            workers.append(_Worker(number, job, environment))
            stack.callback(workers[-1].end)
        _tend(workers, look, stop or Stop())
    return sum_up([worker.outcome for worker in workers if worker.outcome], time.monotonic() - started)


def sum_up(outcomes: Sequence[Outcome], seconds: float) -> BakeReport:
    """One report of several workers of a plan, which took so many seconds together.

    Raises Interrupted if one was, and the first error if no worker saw the end of the plan.
    """
    reports = [outcome for outcome in outcomes if isinstance(outcome, BakeReport)]
    errors = [outcome for outcome in outcomes if not isinstance(outcome, BakeReport)]
    for error in errors:
        if isinstance(error, Interrupted) or not reports:
            raise error
        _logger.warning("a bake worker gave up, and others did its work: %s", error)
    sums = {field.name: sum(getattr(report, field.name) for report in reports) for field in fields(BakeReport)}
    # Who ended last knows best what is left.
    return replace(BakeReport(**sums), seconds=round(seconds, 3), unpaid=min(report.unpaid for report in reports))


@contextmanager
def followed(store: Store, plan_id: str, progress: Progress) -> Iterator[Callable[[], None]]:
    """Shows what the ledger has of a plan, whoever baked it: call the result from time to time."""
    counts = store.ledger.progress(plan_id)
    seen = counts.rows
    with progress.track("bake", counts.answers - counts.rows) as advance:

        def look() -> None:
            nonlocal seen
            with suppress(StorageError):  # the bar stands still while the ledger is away
                rows = store.ledger.progress(plan_id).rows
                advance(rows - seen)
                seen = rows

        yield look
        look()


def _share(settings: Settings) -> Settings:
    """The settings as one of the processes must see them: a machine's price and speed are those of all of them."""
    number, gpu, budget = settings.engine.processes, settings.prices.gpu, settings.plan
    share = gpu.model_copy(
        update={
            "usd_per_hour": gpu.usd_per_hour / number,
            "prompt_tokens_per_s": gpu.prompt_tokens_per_s / number,
            "completion_tokens_per_s": gpu.completion_tokens_per_s / number,
        }
    )
    seconds = None if budget.budget_gpu_s is None else budget.budget_gpu_s * number
    return settings.model_copy(
        update={
            "prices": settings.prices.model_copy(update={"gpu": share}),
            "plan": budget.model_copy(update={"budget_gpu_s": seconds}),
        }
    )


def _tend(workers: Sequence[_Worker], look: Callable[[], None], stop: Stop) -> None:
    told = False
    while running := {worker.connection: worker for worker in workers if worker.outcome is None}:
        for connection in wait(list(running), timeout=LOOK_S):
            outcome = running[connection].hear(again=not stop.requested)  # type: ignore[index]
            if isinstance(outcome, Interrupted):
                stop.request(f"a bake worker was {outcome}".split(";")[0])
        if stop.requested and not told:
            told = True
            for worker in workers:
                worker.tell_to_stop(stop.reason)
        look()


class _Worker:
    """One worker process, started again when it dies; ``outcome`` is set when it is through."""

    def __init__(self, number: int, job: Job, environment: Mapping[str, str]) -> None:
        self._number, self._job, self._environment = number, job, environment
        self._starts = 0
        self.outcome: Outcome | None = None
        self._start()

    def hear(self, *, again: bool) -> Outcome | None:
        """What it says at its end; if it died without a word it is started, where ``again`` allows it."""
        try:
            self.outcome = self.connection.recv()
        except (EOFError, OSError):
            self.end()
            code = self._process.returncode
            if not again:
                self.outcome = Interrupted(f"stopped: bake worker {self._number} died with exit code {code}")
            elif self._starts == _STARTS:
                self.outcome = EngineError(
                    f"bake worker {self._number} died {_STARTS} times, the last time with exit code {code}; "
                    "what it said is above"
                )
            else:
                _logger.warning("bake worker %s died with exit code %s; it is started again", self._number, code)
                self._start()
        return self.outcome

    def tell_to_stop(self, reason: str) -> None:
        """Ask it to drain; hear() has what comes of it."""
        with suppress(OSError):
            self.connection.send(reason)

    def end(self) -> None:
        """Return when the process is gone: it drains when the socket closes."""
        self.connection.close()
        try:
            self._process.wait(timeout=_DRAIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self._starts += 1
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tasks.bake_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C in the terminal is this process's to answer
                env=os.environ | self._environment,
            )
        self.connection = Connection(ours.detach())
        with suppress(OSError):  # it died at once: hear() finds out
            self.connection.send(self._job)
