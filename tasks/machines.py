"""A night baked by workers elsewhere: how many there should be now, until the plan is done, the budget or time is up.

In: a plan, and ``Machines`` that can start and stop workers (processes here, runs of Prefect, groups of a cloud). Out:
the report of the bake over all of them, read from what they committed. The ledger says who is alive, what is done and
what is spent; whoever ends before that, by whatever cause, is replaced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol

from prebake.errors import EngineError
from prebake.progress import Progress, Silent
from prebake.settings import Settings
from prebake.stop import Stop
from storage.store import Store
from tasks.bake import BakeReport
from tasks.plan_watch import Need, PlanWatch

_LOOK_S: Final = 2.0
_END_S: Final = 60.0  # an engine that is done with its work closes within this time
_LAST_WORD_S: Final = 10.0  # from a worker's end in the ledger to that of its process or run
_DRAIN_S: Final = 20.0  # Prefect kills a night 30 s after its cancel
_TRIES: Final = 3  # a worker's place is filled so many times in a row without one answer more

_logger = logging.getLogger(__name__)


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
    watch = PlanWatch(store, settings, plan_id, ready_at)
    if watch.now.rows < watch.now.answers:
        machines = make(store, settings, plan_id, run_id)
        try:
            with progress.watch(watch.pulse):
                _until_over(watch, machines, stop)
            if watch.done:
                _wait_for_end(watch, machines, stop)
        finally:
            machines.stop(_DRAIN_S)
        stop.check()
    return watch.report()


def _until_over(watch: PlanWatch, machines: Machines, stop: Stop) -> None:
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


def _wait_for_end(watch: PlanWatch, machines: Machines, stop: Stop) -> None:
    """Let workers that are done close their engines and say so; machines that their workers left are not kept."""
    give_up = time.monotonic() + _END_S
    while machines.running() and time.monotonic() < give_up and not stop.wait(_LOOK_S / 4):
        watch.look()
        if not watch.at_work:
            give_up = min(give_up, time.monotonic() + _LAST_WORD_S)
