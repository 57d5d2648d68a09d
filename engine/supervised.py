"""The engine that bakes: vLLM in a supervised process of its own, which may die without anybody losing a prompt.

When it dies it is started afresh and asked again what it had not answered; a prompt that kills it is found by halving
(``engine/search.py``) and comes back as refused.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from engine.interface import Completion, Engine, Prompt, Status
from engine.model_folder import check_model
from engine.process import EngineDied, EngineProcess
from engine.search import Search
from prebake.errors import EngineError, PrebakeError
from prebake.settings import Engine as EngineSettings
from prebake.stop import Stop

WAIT_S: Final = 0.2
SALVAGE_S: Final = 5.0


def open_engine(settings: EngineSettings, stop: Stop | None = None) -> Engine:
    """Start vLLM with the model of the settings; takes as long as vLLM takes to load it.

    Raises SettingsError for an engine argument vLLM does not know, EngineError if the model cannot be loaded,
    Interrupted if ``stop`` is requested while it loads, now or after a death.
    """
    check_model(settings.model, weights=settings.args.get("load_format") != "dummy")
    return SupervisedEngine(settings, stop)


class SupervisedEngine:
    """The Engine interface, over a process that is watched and replaced."""

    def __init__(self, settings: EngineSettings, stop: Stop | None = None) -> None:
        self._settings, self._stop = settings, stop or Stop()
        self._in_flight: dict[bytes, Prompt] = {}
        self._ready: list[Completion] = []
        self._search: Search | None = None
        self._answers_since_death = 0
        self._salvaging = False
        self.restarts = 0
        self._start()

    @property
    def in_flight(self) -> int:
        """Prompts that were added and have not come back."""
        return len(self._in_flight)

    @property
    def capacity(self) -> int:
        """As the engine says; none while a prompt that kills it is searched for."""
        return 0 if self._search else self._capacity

    @property
    def pid(self) -> int:
        """Of the engine's process and its group."""
        return self._process.pid

    def add(self, prompt: Prompt) -> None:
        """Take a prompt."""
        self._in_flight[prompt.key] = prompt
        if self._search is None:
            self._send([prompt])

    def step(self) -> list[Completion]:
        """What has finished, after at most a fraction of a second; starts the engine anew if it died."""
        try:
            done = self._collect()
        except EngineDied as death:
            done = self._recover(str(death))
        if self._search and not self._in_flight.keys() & set(self._search.testing):
            self._search.survived()
            self._ask_suspects()
        return done

    def salvage(self) -> list[Completion]:
        """Stop all that is in flight and give it back, partial where the engine still tells, within five seconds."""
        done = list[Completion]()
        self._salvaging = True
        try:
            self._process.send("salvage")
            deadline = time.monotonic() + SALVAGE_S
            while time.monotonic() < deadline:
                message = self._process.receive(deadline - time.monotonic())
                if message and message[0] in ("done", "salvaged"):
                    done += self._take(message[1])
                if message and message[0] == "salvaged":
                    break
        except EngineDied:
            pass  # the partial answers died with it
        done += [Completion(p.key, Status.PARTIAL, partial=p.partial) for p in self._in_flight.values()]
        self._in_flight.clear()
        self._search, self._salvaging = None, False
        return done

    def close(self) -> None:
        """End the engine's process group."""
        self._process.end()

    def _start(self) -> None:
        self._process = EngineProcess(self._settings)
        try:
            message = None
            while message is None:
                self._stop.check()
                message = self._process.receive(WAIT_S)
        except EngineDied as death:
            self._process.kill()
            raise EngineError(
                f"engine.model {self._settings.model!r}: the engine ended while loading: {death}"
            ) from None
        except BaseException:
            self._process.kill()
            raise
        kind, value = message
        if kind == "failed":
            self._process.end()
            error: PrebakeError = value
            raise error
        self.model, self._capacity = value

    def _send(self, prompts: list[Prompt]) -> None:
        try:
            for prompt in prompts:
                self._process.send("add", prompt)
        except EngineDied:
            pass  # step() finds out, and asks again

    def _collect(self) -> list[Completion]:
        done = list[Completion]()
        wait_s = WAIT_S
        while message := self._process.receive(wait_s):
            if message[0] == "done":
                done += self._take(message[1])
            wait_s = 0
        if not done and self._in_flight and time.monotonic() - self._process.heard_s > self._settings.stall_s:
            raise EngineDied(f"no step for {self._settings.stall_s:g} s")
        return done

    def _take(self, completions: list[Completion]) -> list[Completion]:
        """What is finished for good; a partial answer of an engine that is being ended is kept to go on from."""
        done = list[Completion]()
        for completion in completions:
            if completion.status is Status.PARTIAL and not self._salvaging:
                self._in_flight[completion.key] = replace(self._in_flight[completion.key], partial=completion.partial)
            elif self._in_flight.pop(completion.key, None):
                done.append(completion)
        self._answers_since_death += len(done)
        return done

    def _recover(self, reason: str) -> list[Completion]:
        self._process.kill()
        unanswered = list(self._in_flight)
        culprit = None
        if self._search is None:
            self._search, self._answers_since_death = Search(unanswered), 0
            if len(unanswered) == 1:
                culprit = self._search.died(unanswered)
        else:
            culprit = self._search.died([key for key in self._search.testing if key in self._in_flight])
            if culprit and not self._answers_since_death:
                raise EngineError(f"the engine dies whatever it is asked: {reason}")
        self.restarts += 1
        self._start()
        refused = []
        if culprit:
            del self._in_flight[culprit]
            refused = [Completion(culprit, Status.REFUSED, error=f"it kills the engine: {reason}")]
        self._ask_suspects()
        return refused

    def _ask_suspects(self) -> None:
        assert self._search is not None  # noqa: S101 - for the type checker
        if self._search.over:
            self._search = None
            self._send(list(self._in_flight.values()))
        else:
            self._send([self._in_flight[key] for key in self._search.testing])
