"""The engine that bakes: vLLM in a supervised process of its own, which may die without anybody losing a prompt.

When it dies it is started afresh and asked again what it had not answered; a prompt that kills it is found by halving
(``engine/search.py``) and comes back as refused. When it runs out of memory again and again it gets smaller limits.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
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
SALVAGE_S: Final = 10.0  # a core whose workers a signal has ended takes three to end too

logger = logging.getLogger(__name__)


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
        self._search: Search | None = None
        self._accused: Completion | None = None  # refused as soon as the engine is seen to answer others
        self._answered = False  # anything since the search began
        self._memory_deaths = 0
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
        if not self._in_flight:
            self._process.heard_s = time.monotonic()  # an idle engine owes no sign of life
        self._in_flight[prompt.key] = prompt
        if self._search is None:
            self._send([prompt])

    def step(self) -> list[Completion]:
        """What has finished, after at most a fraction of a second; starts the engine anew if it died."""
        done = list[Completion]()
        try:
            done = self._collect()
        except EngineDied as death:
            self._recover(death)
        if self._search and not self._in_flight.keys() & set(self._search.testing):
            self._search.survived()
            self._ask_suspects()
        return done + self._convict()

    def salvage(self) -> list[Completion]:
        """Stop all that is in flight and give it back, partial where the engine still tells, within ten seconds."""
        done = list[Completion]()
        self._salvaging = True
        with suppress(EngineDied):  # what it had to say is read all the same
            self._process.send("salvage")
        with suppress(EngineDied):
            deadline = time.monotonic() + SALVAGE_S
            # What has come is read even when it is late: this process may be the one that was held up.
            while message := self._process.receive(max(0.0, deadline - time.monotonic())):
                if message[0] in ("done", "salvaged"):
                    done += self._take(message[1])
                if message[0] == "salvaged":
                    break
        done += [Completion(p.key, Status.PARTIAL, partial=p.partial) for p in self._in_flight.values()]
        self._in_flight.clear()
        self._search, self._accused, self._salvaging = None, None, False
        return done

    def close(self) -> None:
        """End the engine's process group."""
        self._process.end()

    def _start(self) -> None:
        self._process = EngineProcess(self._settings)
        try:
            message = None
            while message is None or message[0] not in ("ready", "failed"):
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
        self.model, self._capacity, self._limits = value

    def _send(self, prompts: list[Prompt]) -> None:
        try:
            for prompt in prompts:
                self._process.send("add", prompt)
        except EngineDied:
            pass  # step() finds out, and asks again

    def _collect(self) -> list[Completion]:
        done = list[Completion]()
        wait_s = WAIT_S
        try:
            while message := self._process.receive(wait_s):
                if message[0] == "done":
                    done += self._take(message[1])
                wait_s = 0
        except EngineDied:
            if not done:  # else the answers first: the next call is told of the death again
                raise
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
        self._answered = self._answered or bool(done)
        return done

    def _recover(self, death: EngineDied) -> None:
        self._process.kill()
        if self._accused and not self._answered:
            raise EngineError(f"the engine dies whatever it is asked: {death}")
        if death.out_of_memory and self._search is None and self._shrink():
            self._restart()
            self._send(list(self._in_flight.values()))
            return
        if self._search is None:
            self._search, self._answered = Search(list(self._in_flight)), False
        elif culprit := self._search.died([key for key in self._search.testing if key in self._in_flight]):
            self._accused = Completion(culprit, Status.REFUSED, error=f"it kills the engine: {death}")
        self._restart()
        self._ask_suspects()

    def _shrink(self) -> bool:
        """Smaller limits from the second memory error on; whether it is worth trying again."""
        self._memory_deaths += 1
        if self._memory_deaths > 1 + self._settings.memory_retries:
            return False
        if self._memory_deaths > 1:
            smaller = {name: max(1, limit // 2) for name, limit in self._limits.items()}
            logger.warning("the engine ran out of memory again: going on with %s", smaller)
            self._settings = self._settings.model_copy(update={"args": self._settings.args | smaller})
        return True

    def _restart(self) -> None:
        self.restarts += 1
        self._start()

    def _ask_suspects(self) -> None:
        assert self._search is not None  # noqa: S101 - for the type checker
        if self._search.over:
            self._search = None
            self._send([prompt for key, prompt in self._in_flight.items() if not self._is_accused(key)])
        else:
            self._send([self._in_flight[key] for key in self._search.testing])

    def _convict(self) -> list[Completion]:
        """The accused, once the engine has answered others, or there is nobody else to ask."""
        if self._accused is None or not (self._answered or len(self._in_flight) == 1):
            return []
        convicted, self._accused = self._accused, None
        del self._in_flight[convicted.key]
        return [convicted]

    def _is_accused(self, key: bytes) -> bool:
        return self._accused is not None and self._accused.key == key
