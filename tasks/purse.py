"""The purse: what this worker may still spend of the budget that all workers of a plan share.

In: the settings' limits, and each request's worst case before it is admitted. Out: whether it may be. The worker books
in the ledger what it may spend next, before it spends it: its time so far, the worst case of all in flight, and a few
seconds more so that not every request asks the ledger. Each booking tells the night that the worker is alive.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Final

from prebake.errors import Interrupted, StorageError
from prebake.settings import Settings
from storage.ledger import Ledger
from storage.workers import Budget, Done, End
from tasks.bake_pulse import Tally

_BEATS: Final = 4  # in the time that a silent worker counts as alive


def budget_of(settings: Settings) -> Budget:
    """The most that a plan's workers may spend together, as the settings say."""
    return Budget(settings.plan.budget_gpu_s, settings.plan.budget_usd)


class Purse:
    """The budget as this worker sees it, in GPU seconds: one machine's time, whatever it does with it."""

    def __init__(self, ledger: Ledger, settings: Settings, plan_id: str, run_id: str, owner: str, tally: Tally) -> None:
        self._workers, self._budget = ledger.workers, budget_of(settings)
        self._price, self._lease_s = settings.prices.gpu, settings.engine.lease_s
        self._speed = settings.capacity.speed
        self._who = (plan_id, run_id, owner)
        self._started = time.monotonic()
        self._promised_s = 0.0
        self._booked_s = 0.0
        self._busy_since: float | None = None
        self._tally = tally
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="purse", daemon=True)
        self.broke = False

    def __enter__(self) -> Purse:
        plan_id, run_id, owner = self._who
        price, lease_s = self._price.usd_per_hour, self._lease_s
        self._id = self._workers.join(plan_id, run_id, owner, price, lease_s, self._speed)
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._beating.join()
        with suppress(StorageError):  # an unreachable ledger keeps the booking: counted as spent, never forgotten
            self._workers.leave(self._id, self.spent_s, self._done(), self._end(kind))

    @property
    def spent_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def worst_s(self, request: bytes, max_tokens: int) -> float:
        """GPU seconds that a request can cost: no prompt has more tokens than bytes."""
        return self._price.seconds(len(request), max_tokens)

    def pays(self, worst_s: float) -> bool:
        """Whether what is left of the budget pays this too; books it then."""
        needed_s = self.spent_s + self._promised_s + worst_s
        if self._budget.limited and needed_s > self._booked_s:
            with self._lock:
                _ = self._book(needed_s + self._lease_s / 2) or self._book(needed_s)
            self.broke = needed_s > self._booked_s
        return not self.broke

    def promise(self, worst_s: float) -> None:
        """Take it out of the rest; a negative amount gives it back."""
        self._promised_s += worst_s
        if self._busy_since is None:
            self._busy_since = time.monotonic()

    def usd(self) -> float:
        """Dollars that this worker spent."""
        return self._price.usd(self.spent_s)

    def _book(self, booked_s: float) -> bool:
        """Never less than before: the thread that bakes may have admitted a request by the old booking."""
        booked_s = max(booked_s, self._booked_s)
        granted = self._workers.book(self._id, booked_s, self._budget, self._lease_s, self._done())
        if granted:
            self._booked_s = booked_s
        return granted

    def _beat(self) -> None:
        """Say that this worker is alive, and book the time that passes while it admits nothing."""
        while not self._closing.wait(self._lease_s / _BEATS):
            with self._lock, suppress(StorageError):
                needed_s = self.spent_s + self._promised_s
                # Refused, time passes all the same: what is in flight was paid when it was admitted.
                _ = self._book(needed_s + self._lease_s / 2) or self._book(needed_s)

    def _done(self) -> Done:
        busy_s = 0.0 if self._busy_since is None else time.monotonic() - self._busy_since
        tally = self._tally
        answers = tally.answered + tally.truncated + tally.refused
        return Done(busy_s, answers, tally.completion_tokens, tally.resumed_tokens)

    def _end(self, kind: type[BaseException] | None) -> End:
        if kind is not None:
            return "stopped" if issubclass(kind, Interrupted | KeyboardInterrupt) else "failed"
        return "budget" if self.broke else "done"
