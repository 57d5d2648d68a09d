"""An engine without a model, for tests of what goes on around one: each answer is a word, said as often as allowed.

It runs in the test's own thread, one token of each prompt a step, and goes on from partial answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from secrets import token_hex

import orjson

from engine import Completion, Partial, Prompt, Status


class ParrotEngine:
    """The Engine interface; ``step_s`` is how long a step takes, ``noise`` how many random bytes end each answer."""

    model = "parrot"

    def __init__(self, *, capacity: int = 8, step_s: float = 0.0, noise: int = 0) -> None:
        self.capacity = capacity
        self.restarts = 0
        self._step_s, self._noise = step_s, noise
        self._said: dict[bytes, int] = {}
        self._prompts: dict[bytes, Prompt] = {}
        self.tokens = 0
        """Generated in all."""
        self.alarm: tuple[int, Callable[[], object]] | None = None
        """What to call after each step, once so many tokens are generated."""

    @property
    def in_flight(self) -> int:
        """Prompts that were added and have not come back."""
        return len(self._prompts)

    def add(self, prompt: Prompt) -> None:
        """Take a prompt."""
        self._prompts[prompt.key] = prompt
        self._said[prompt.key] = len(prompt.partial.token_ids) if prompt.partial else 0

    def step(self) -> list[Completion]:
        """One token for each."""
        time.sleep(self._step_s)
        for key in self._prompts:
            self._said[key] += 1
        self.tokens += len(self._prompts)
        if self.alarm and self.tokens >= self.alarm[0]:
            self.alarm[1]()
        done = [prompt for prompt in self._prompts.values() if self._said[prompt.key] >= _limit(prompt)]
        return [self._answer(self._prompts.pop(prompt.key)) for prompt in done]

    def salvage(self) -> list[Completion]:
        """All that is unfinished."""
        prompts, self._prompts = list(self._prompts.values()), {}
        return [
            Completion(p.key, Status.PARTIAL, partial=Partial(self.model, (1,) * self._said[p.key], 0.0))
            for p in prompts
        ]

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, prompt: Prompt) -> Completion:
        return Completion(
            prompt.key,
            Status.TRUNCATED,
            finish_reason="length",
            message={
                "role": "assistant",
                "content": " ".join(["so"] * self._said[prompt.key]) + token_hex(self._noise),
            },
            prompt_tokens=1,
            completion_tokens=self._said[prompt.key],
            resumed_tokens=len(prompt.partial.token_ids) if prompt.partial else 0,
        )


def _limit(prompt: Prompt) -> int:
    limit: int = orjson.loads(prompt.request)["params"].get("max_tokens", prompt.max_tokens)
    return limit
