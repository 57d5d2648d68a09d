"""The pulse of a bake: how far it is, how fast, and what it costs, at one moment; and the words that say so.

In: the bake's own counts. Out: one frozen reading that the terminal, Prefect and Prometheus show alike. A bake hands
out a way to look, not a stream of news, so that being watched costs it nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

WINDOW_S: Final = 60.0
"""What "lately" means for a rate, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """One reading. Answers, shards and time left are the whole plan's, by all its workers; the rest is this worker's.

    None: not known yet (``tokens_per_s`` while no engine is loaded, ``seconds_left`` while nothing is finished), or no
    such limit (``budget_usd``). ``restarted``: answers whose tokens of before a stop could not be used.
    ``flush_age_s``: since answers last became durable, or since the start.
    """

    plan_id: str = ""
    run_id: str = ""
    owner: str = ""
    answers: int = 0
    planned: int = 0
    shards_pending: int = 0
    shards_leased: int = 0
    shards_done: int = 0
    seconds_left: float | None = None
    answered: int = 0
    truncated: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    resumed_tokens: int = 0
    restarted: int = 0
    tokens_per_s: float | None = None
    in_flight: int = 0
    capacity: int = 0
    engine_restarts: int = 0
    leases: int = 0
    leases_lost: int = 0
    flushes: int = 0
    parts: int = 0
    unflushed: int = 0
    flush_age_s: float = 0.0
    seconds: float = 0.0
    usd: float = 0.0
    budget_usd: float | None = None
    notices: int = 0

    def figures(self) -> dict[str, str]:
        """What a person wants to know, each by its name, in the order of a page."""
        return {
            "answers": f"{self.answers:,} of {self.planned:,}",
            "tokens per second": speed(self.tokens_per_s),
            "time left": duration(self.seconds_left),
            "spent by this worker": money(self.usd, self.budget_usd),
            "time so far": duration(self.seconds),
            "refused": f"{self.refused:,}",
            "prompt tokens": f"{self.prompt_tokens:,}",
            "completion tokens": f"{self.completion_tokens:,}",
            "tokens resumed": f"{self.resumed_tokens:,}",
            "answers started again": f"{self.restarted:,}",
            "in the engine": f"{self.in_flight:,} of {self.capacity:,}",
            "engine restarts": f"{self.engine_restarts:,}",
            "shards": f"{self.shards_done:,} done, {self.shards_leased:,} leased, {self.shards_pending:,} pending",
            "leases lost": f"{self.leases_lost:,}",
            "not yet durable": f"{self.unflushed:,} answers",
        }

    def sentence(self) -> str:
        """The same in one line, with its troubles where there are any."""
        said = [
            f"{self.answers:,} of {self.planned:,} answers",
            "no engine yet" if self.tokens_per_s is None else f"{speed(self.tokens_per_s)} tokens/s",
            f"{duration(self.seconds_left)} left",
            money(self.usd, self.budget_usd),
        ]
        troubles = {"refused": self.refused, "engine restarts": self.engine_restarts, "leases lost": self.leases_lost}
        return ", ".join(said + [f"{name}: {count:,}" for name, count in troubles.items() if count])


Look = Callable[[], Pulse]
"""Gives the pulse of now; cheap, and any thread may call it."""


class Pace:
    """How much per second, lately: since about ``WINDOW_S`` ago, or since the start where that is less long ago."""

    def __init__(self, at_s: float, amount: int) -> None:
        """Start at that time of a monotonic clock with that amount done."""
        self._marks = deque([(at_s, amount)])
        self._lock = threading.Lock()

    def per_s(self, at_s: float, amount: int) -> float:
        """The pace now, with that amount done in all; 0 before any time has passed."""
        with self._lock:
            if at_s - self._marks[-1][0] >= 1:  # so that frequent looks fill no memory
                self._marks.append((at_s, amount))
            while len(self._marks) > 1 and self._marks[1][0] <= at_s - WINDOW_S:
                self._marks.popleft()
            since_s, before = self._marks[0]
        return max(0.0, (amount - before) / (at_s - since_s)) if at_s > since_s else 0.0


def seconds_for(amount: int, per_s: float) -> float | None:
    """How long that amount takes at that pace; None if it would take for ever."""
    if amount <= 0:
        return 0.0
    return amount / per_s if per_s > 0 else None


def speed(per_s: float | None) -> str:
    """A rate in at most five characters up to ten million; a question mark where it is unknown."""
    if per_s is None:
        return "?"
    return f"{per_s:,.0f}" if per_s < 9_999.5 else f"{per_s / 1000:,.0f}k"


def duration(seconds: float | None) -> str:
    """A time in at most seven characters up to 99 days; a question mark where it is unknown."""
    if seconds is None:
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h}h"
    if hours:
        return f"{hours}h{m:02}m"
    return f"{m}m{s:02}s" if minutes else f"{s}s"


def money(usd: float, budget_usd: float | None = None) -> str:
    """Dollars, and the budget where there is one; tenths of cents below a dollar, where a night begins."""
    of = "" if budget_usd is None else f" of {money(budget_usd)}"
    return (f"${usd:.3f}" if 0 < usd < 0.9995 else f"${usd:,.2f}") + of
