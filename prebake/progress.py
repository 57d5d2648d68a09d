"""Progress of long work: a bar for a person, nothing for a program; a step never knows which.

Most steps count units (``track``). The bake lets itself be looked at (``watch``): how far it is depends on other
workers too, and there is more to see than a share.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.progress_bar import ProgressBar
from rich.table import Table

from prebake.pulse import Look, Pulse, duration, money, speed

Advance = Callable[[int], None]

LINE_EVERY_S: Final = 30.0
"""How often a line is printed where there is no terminal, in seconds."""


class Progress(Protocol):
    """Where a step reports how far it is."""

    def track(self, what: str, total: int | None) -> AbstractContextManager[Advance]:
        """Open one piece of work of ``total`` units (None: unknown); call the result with each advance."""

    def watch(self, look: Look) -> AbstractContextManager[None]:
        """Show the bake for as long as the block lasts, looking now and then and a last time at its end."""


class Silent:
    """No progress shown."""

    @contextmanager
    def track(self, what: str, total: int | None) -> Iterator[Advance]:  # noqa: ARG002 - the protocol's signature
        """Show nothing."""
        yield lambda _units: None

    @contextmanager
    def watch(self, look: Look) -> Iterator[None]:  # noqa: ARG002 - the protocol's signature
        """Show nothing."""
        yield


class Bars:
    """Bars on standard error (standard output is for results); plain lines where it is no terminal."""

    def __init__(self, *, line_every_s: float = LINE_EVERY_S) -> None:
        self._console = Console(stderr=True)
        self._line_every_s = line_every_s

    @contextmanager
    def track(self, what: str, total: int | None) -> Iterator[Advance]:
        """Draw a bar while the work lasts."""
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self._console, transient=False, disable=not sys.stderr.isatty()) as bars:
            task = bars.add_task(what, total=total)
            yield lambda units: bars.advance(task, units)
        if not sys.stderr.isatty():
            self._console.print(f"{what}: done")

    @contextmanager
    def watch(self, look: Look) -> Iterator[None]:
        """Draw the bake's bar, or print a line now and then; the last one stays."""
        if sys.stderr.isatty():
            with Live(get_renderable=lambda: bake_bar(look()), console=self._console, refresh_per_second=2):
                yield
            return
        ended = threading.Event()
        speaker = threading.Thread(target=self._say, args=(look, ended), name="bake-lines", daemon=True)
        speaker.start()
        try:
            yield
        finally:
            ended.set()
            speaker.join()

    def _say(self, look: Look, ended: threading.Event) -> None:
        over = False
        while not over:
            over = ended.wait(self._line_every_s)
            self._console.print(f"bake: {look().sentence()}", soft_wrap=True, highlight=False)


def bake_bar(pulse: Pulse) -> Table:
    """The bake in one line of 80 columns: answers, recent speed, time left, money; the bar takes what is left."""
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column()
    row.add_column(ratio=1)
    for _ in range(4):
        row.add_column(no_wrap=True, justify="right")
    row.add_row(
        "bake",
        ProgressBar(total=max(1, pulse.planned), completed=pulse.answers),
        f"{pulse.answers:,}/{pulse.planned:,}",
        "no engine yet" if pulse.tokens_per_s is None else f"{speed(pulse.tokens_per_s)} tok/s",
        f"{duration(pulse.seconds_left)} left",
        money(pulse.usd, pulse.budget_usd),
    )
    return row
