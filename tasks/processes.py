"""Bake workers as processes of this machine: as many as are needed, replaced when they die, gone when the night is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final

import orjson

from prebake.errors import Interrupted
from prebake.settings import Settings
from storage.store import Store
from tasks.gpus import environments, visible_gpus
from tasks.plan_watch import Need

_ROOT: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class _Child:
    slot: int
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def last_words(self) -> str:
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit {self.process.returncode}"


class Processes:
    """Workers of one plan on this machine, each on GPUs of its own."""

    def __init__(self, _store: Store, settings: Settings, plan_id: str, run_id: str) -> None:
        self._settings = _plain(settings)
        self._environments = environments(settings.engine, visible_gpus(), settings.capacity.max_machines)
        self._command = (sys.executable, "-m", "tasks.worker", plan_id, run_id)
        self._children: list[_Child] = []

    def tend(self, need: Need) -> list[str]:
        """See ``Machines``."""
        ended = [child for child in self._children if child.process.poll() is not None]
        self._children = [child for child in self._children if child not in ended]
        taken = {child.slot for child in self._children}
        free = [slot for slot in range(len(self._environments)) if slot not in taken]
        for slot in free[: max(need.workers - len(taken), 0)]:
            self._children.append(self._start(slot))
        return [child.last_words() for child in ended if child.process.returncode not in (0, Interrupted.exit_code)]

    def running(self) -> int:
        """See ``Machines``."""
        return sum(child.process.poll() is None for child in self._children)

    def stop(self, within_s: float) -> None:
        """See ``Machines``; who takes longer is killed."""
        for child in self._children:
            child.process.send_signal(signal.SIGTERM)
        give_up = time.monotonic() + within_s
        for child in self._children:
            try:
                child.process.wait(max(give_up - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            with suppress(BrokenPipeError):
                child.process.communicate()  # closes its input
            child.output.close()
        self._children = []

    def _start(self, slot: int) -> _Child:
        """A worker in a process group of its own, so that a Ctrl-C in the terminal reaches only the night."""
        output = TemporaryFile()  # noqa: SIM115 - closed when the worker is stopped
        process = subprocess.Popen(
            self._command,
            cwd=_ROOT,
            env=os.environ | self._environments[slot],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            process_group=0,  # engine/process.py has why it is no session of its own
        )
        assert process.stdin is not None  # noqa: S101 - as asked for above
        with suppress(BrokenPipeError):  # it died at once: seen when it is tended
            process.stdin.write(self._settings + b"\n")
            process.stdin.flush()
        return _Child(slot, process, output)


def _plain(settings: Settings) -> bytes:
    """The settings as one line, with the secret that models hide when they are written down."""
    values = settings.model_dump(mode="json")
    if settings.privacy.user_salt is not None:
        values["privacy"]["user_salt"] = settings.privacy.user_salt.get_secret_value()
    return orjson.dumps(values)
