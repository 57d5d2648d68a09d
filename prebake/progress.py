"""Progress of long work: a bar for a person, nothing for a program; a step never knows which."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

Advance = Callable[[int], None]


class Progress(Protocol):
    """Where a step reports how far it is."""

    def track(self, what: str, total: int | None) -> AbstractContextManager[Advance]:
        """Open one piece of work of ``total`` units (None: unknown); call the result with each advance."""


class Silent:
    """No progress shown."""

    @contextmanager
    def track(self, what: str, total: int | None) -> Iterator[Advance]:  # noqa: ARG002 - the protocol's signature
        """Show nothing."""
        yield lambda _units: None


class Bars:
    """Bars on standard error (standard output is for results); plain lines where it is no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

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
