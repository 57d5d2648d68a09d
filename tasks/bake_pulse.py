"""Takes the pulse of one bake, for whoever watches it. In: its counts, its writer, the ledger. Out: a ``Pulse``.

The plan's own progress, with what other workers bake of it, comes from the ledger, asked by a thread every few
seconds; all else is read off the running bake when somebody looks.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from engine import Completion, Engine
from prebake.errors import StorageError
from prebake.pulse import Pace, Pulse, seconds_for
from prebake.settings import Settings
from prebake.stop import Stop
from storage.ledger import Ledger, Progress
from tasks.bake_parts import PartWriter

_ASK_EVERY_S: Final = 5.0
_PATIENCE_S: Final = 1.0


@dataclass
class Tally:
    """What this worker has baked so far: answers by status, tokens by kind."""

    answered: int = 0
    truncated: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    resumed_tokens: int = 0
    restarted: int = 0

    def count(self, completion: Completion) -> None:
        """Add one answer, or refusal."""
        setattr(self, completion.status, getattr(self, completion.status) + 1)
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens
        self.resumed_tokens += completion.resumed_tokens
        self.restarted += completion.restarted


class PulseTaker:
    """Looks at a bake while the block lasts. ``take`` may be called from any thread."""

    def __init__(
        self, ledger: Ledger, settings: Settings, writer: PartWriter, stop: Stop, plan_id: str, run_id: str, owner: str
    ) -> None:
        self.tally = Tally()
        self._ledger, self._writer, self._stop = ledger, writer, stop
        self._price, self._budget_usd = settings.prices.gpu, budget_usd(settings)
        self._plan_id, self._run_id, self._owner = plan_id, run_id, owner
        self._plan = ledger.progress(plan_id)
        self._others = self._plan.rows
        self._engine: Engine | None = None
        self._restarts_before = 0
        self._started = time.monotonic()
        self._tokens = Pace(self._started, 0)
        self._answers = Pace(self._started, self._others)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._ask_often, name="bake-pulse", daemon=True)

    def __enter__(self) -> PulseTaker:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._closing.set()
        self._thread.join(_PATIENCE_S)  # a ledger that is away must not hold up the end

    @property
    def engine_restarts(self) -> int:
        """How often the engine had to be started anew for this bake."""
        return 0 if self._engine is None else self._engine.restarts - self._restarts_before

    def engine_ready(self, engine: Engine) -> None:
        """The engine is loaded: from now on the bake has a speed."""
        self._restarts_before, self._engine = engine.restarts, engine
        now = time.monotonic()
        self._tokens = Pace(now, self.tally.completion_tokens)
        self._answers = Pace(now, self._done())

    def ask(self) -> Progress:
        """How far the plan is, as the ledger says now. Raises StorageError."""
        plan = self._ledger.progress(self._plan_id)
        # The writer's count last: what it commits meanwhile is left out of the others' until the next time.
        self._others = max(self._others, plan.rows - self._writer.committed)
        self._plan = plan
        return plan

    def take(self) -> Pulse:
        """The pulse of now."""
        now, plan, tally, writer, engine = time.monotonic(), self._plan, self.tally, self._writer, self._engine
        done = self._done()
        return Pulse(
            plan_id=self._plan_id,
            run_id=self._run_id,
            owner=self._owner,
            **vars(tally),
            answers=done,
            planned=plan.answers,
            shards_pending=plan.pending,
            shards_leased=plan.leased,
            shards_done=plan.done,
            seconds_left=seconds_for(plan.answers - done, self._answers.per_s(now, done)),
            tokens_per_s=self._tokens.per_s(now, tally.completion_tokens) if engine else None,
            in_flight=engine.in_flight if engine else 0,
            capacity=engine.capacity if engine else 0,
            engine_restarts=self.engine_restarts,
            leases=writer.held,
            leases_lost=writer.lost,
            flushes=writer.flushes,
            parts=writer.parts,
            unflushed=writer.waiting,
            flush_age_s=now - (writer.flushed_s or self._started),
            seconds=now - self._started,
            usd=self._price.usd(now - self._started),
            budget_usd=self._budget_usd,
            notices=int(self._stop.notice),
        )

    def _done(self) -> int:
        return min(self._plan.answers, self._others + self._writer.taken - self._writer.dropped)

    def _ask_often(self) -> None:
        while not self._closing.wait(_ASK_EVERY_S):
            with suppress(StorageError):  # the ledger is away: what it said last holds
                self.ask()


def budget_usd(settings: Settings) -> float | None:
    """The tighter of the two limits, in dollars."""
    plan = settings.plan
    from_time = None if plan.budget_gpu_s is None else settings.prices.gpu.usd(plan.budget_gpu_s)
    return min((limit for limit in (plan.budget_usd, from_time) if limit is not None), default=None)
