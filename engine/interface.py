"""What baking needs of an engine: prompts go in, and each comes back exactly once as a completion."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class Status(StrEnum):
    """How a prompt came back; the first three are what the answers table calls them."""

    ANSWERED = "answered"
    TRUNCATED = "truncated"  # cut off by the length limit
    REFUSED = "refused"  # too long, a template that raises, a parameter that cannot be honoured, killed the engine
    PARTIAL = "partial"  # stopped by salvage(): no answer, but its tokens need not be generated again


@dataclass(frozen=True, slots=True)
class Partial:
    """The tokens of an answer that ``model`` did not finish; ``logprob_sum`` in nats, None where it was not counted."""

    model: str
    token_ids: tuple[int, ...]
    logprob_sum: float | None


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to answer.

    ``request`` is the canonical JSON of messages, model and params; ``max_tokens`` holds where it sets no limit of
    its own, ``temperature`` replaces its own where given. ``partial``: go on from here where that is exact.
    """

    key: bytes
    request: str
    max_tokens: int
    temperature: float | None = None
    partial: Partial | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of one prompt; ``engine_s`` is the time from entering the engine to the last token.

    ``partial`` is set for Status.PARTIAL; ``resumed_tokens`` of the answer came from the prompt's own partial;
    ``restarted``: there was one, but to go on from it would not have been exact.
    """

    key: bytes
    status: Status
    finish_reason: str | None = None
    message: dict[str, Any] | None = None
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    mean_logprob: float | None = None
    engine_s: float = 0.0
    resumed_tokens: int = 0
    restarted: bool = False
    partial: Partial | None = None


class Engine(Protocol):
    """A model that answers prompts, many at a time. One thread uses it."""

    model: str
    """Name of the model, as the answers table has it."""

    @property
    def in_flight(self) -> int:
        """Prompts that were added and have not come back."""

    @property
    def capacity(self) -> int:
        """Prompts worth having in flight now: more would only wait in memory."""

    @property
    def restarts(self) -> int:
        """Times it died and was started anew."""

    def add(self, prompt: Prompt) -> None:
        """Take a prompt. One that cannot be answered comes back from step() as refused, and harms nobody else."""

    def step(self) -> list[Completion]:
        """What has finished since the last call; waits a moment if nothing has. Raises EngineError if all is lost."""

    def salvage(self) -> list[Completion]:
        """Stop all that is in flight and give it back: what has just finished, else the partial answers."""

    def close(self) -> None:
        """Free the machine: when this returns no process of the engine is left."""
