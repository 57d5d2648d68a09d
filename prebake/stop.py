"""A polite stop: signals only set a flag, loops read it between two safe points."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prebake.errors import Interrupted


class Stop:
    """Set once, by a signal or a notice; read by every long loop."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""
        self.notice = False
        self._until = 0.0

    def request(self, reason: str, *, notice: bool = False, until: float = 0.0) -> None:
        """Ask to stop; the first reason is kept. ``notice``: the cloud says that it takes the machine.

        ``until``, in seconds since 1970: nothing new is to be begun, what runs may go on till then. Whoever asks after
        that means at once, unless he says until when.
        """
        self.notice = self.notice or notice
        self._until = until
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    @property
    def requested(self) -> bool:
        """Whether somebody asked to stop."""
        return self._event.is_set()

    @property
    def at_once(self) -> bool:
        """Whether somebody asked to stop and what runs may not go on, or not any more."""
        return self.requested and time.time() >= self._until

    def wait(self, timeout_s: float) -> bool:
        """Sleep, but no longer than until the stop; returns whether it was requested."""
        return self._event.wait(timeout_s)

    def check(self) -> None:
        """Raise Interrupted if somebody asked to stop: call it where nothing is half-done."""
        if self.requested:
            raise Interrupted(f"stopped: {self.reason}; what was finished is kept, run the same command to go on")


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A Stop that SIGTERM and SIGINT set; a second Ctrl-C interrupts at once. Main thread only."""
    stop = Stop()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.request(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
