"""Bake workers on the machines of EC2 Auto Scaling groups: each machine starts one when it boots, the policy says how
many machines there are (``capacity/controller.py``). No work left means no machine left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from capacity.controller import Controller, check_zones
from capacity.fleet import FleetError, leave_group
from capacity.policy import Limits
from prebake.errors import SettingsError
from prebake.settings import Settings
from storage.store import Store
from tasks.machines import MakeMachines, Need

_TRIES: Final = 3
_POLL_S: Final = 1.0

_logger = logging.getLogger(__name__)


class Groups:
    """The machines of the settings' zones."""

    def __init__(self, _store: Store, settings: Settings, _plan_id: str, _run_id: str) -> None:
        capacity = settings.capacity
        limits = Limits(capacity.max_machines, capacity.cold_start_h, settings.engine.flush_s / 3600, capacity.caution)
        self._step_s = capacity.decide_s
        self._controller = Controller(capacity.zones, limits, capacity.region or None)
        self._decided = -self._step_s
        self._budget_usd: float | None = None

    @classmethod
    def checked(cls, settings: Settings) -> MakeMachines:
        """How to make them. Raises SettingsError where the settings lack what it takes."""
        if settings.capacity.ready_h is None:
            raise SettingsError("capacity.ready_h: give the hours a night may take; by that zones are chosen")
        check_zones(settings.capacity.zones)
        return cls

    def tend(self, need: Need) -> list[str]:
        """See ``Machines``; decides anew every ``decide_s``."""
        if time.monotonic() - self._decided < self._step_s:
            return []
        self._decided = time.monotonic()
        self._budget_usd = need.budget_usd if self._budget_usd is None else self._budget_usd
        self._patiently(partial(self._step, need))
        return []

    def running(self) -> int:
        """See ``Machines``."""
        return self._controller.machines()

    def stop(self, within_s: float) -> None:
        """See ``Machines``: all groups to zero. Machines drain when their group ends them."""
        for attempt in range(_TRIES):
            try:
                self._controller.stop()
                break
            except FleetError:
                if attempt == _TRIES - 1:
                    raise
                time.sleep(_POLL_S)
        give_up = time.monotonic() + within_s
        while self.running() and time.monotonic() < give_up:
            time.sleep(_POLL_S)

    def _step(self, need: Need) -> None:
        # What machines cost before and beside their work no worker books: the controller's own account has it.
        left_usd = min(need.budget_usd, (self._budget_usd or 0.0) - self._controller.spent_usd)
        self._controller.step(
            work_h=need.work_h if need.workers else 0.0,
            left_h=need.left_h,
            step_h=self._step_s / 3600,
            most=need.most,
            budget_usd=left_usd,
        )

    def _patiently(self, work: Callable[[], None]) -> None:
        """One decision missed is made up for by the next."""
        try:
            work()
        except FleetError as error:
            _logger.warning("%s; deciding again in %g s", error, self._step_s)


def leave(settings: Settings) -> None:
    """For a worker that found no work left: end its EC2 machine, if the settings say so. Raises FleetError."""
    if settings.capacity.leave:
        leave_group(settings.capacity.region or None)
