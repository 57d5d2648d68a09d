"""One engine process and all it starts, seen from outside: started, spoken to, watched, and ended without orphans."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from prebake.settings import Engine as EngineSettings

# vLLM can take twenty seconds to end by itself on a busy machine: more than a notice leaves, and nothing needs it.
_POLITE_S: Final = 2.0
_CLOSE_S: Final = 15.0
# Ends the group when its own standard input closes, which is when the process that holds the other end dies; a signal
# that is meant for all processes of the machine or the container does not end it before. -s, because with -KILL dash,
# Debian's sh, refuses the -- before a group.
_REAPER: Final = 'trap "" TERM INT HUP; cat >/dev/null; kill -s KILL -- "-$1" 2>/dev/null'
# What PyTorch, CUDA, C++ and Python say.
_OUT_OF_MEMORY: Final = re.compile(r"OutOfMemoryError|[Oo]ut of memory|bad_alloc|\bMemoryError")
# The line of a traceback that says what was raised, behind what vLLM puts before lines of its log, if it does.
_RAISED: Final = re.compile(r"^(?:\([^)]*\) ERROR [^]]*\] )?([\w.]+(?:Error|Exception)\b.*)", re.MULTILINE)
SEE_LOG: Final = "root cause"  # how vLLM says that not this exception but one before it in the log is the reason


class EngineDied(Exception):
    """The engine's process is gone, or it hangs; the message has the end of its log."""

    def __init__(self, message: str, *, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


class EngineProcess:
    """A running ``engine.host``. Messages are (kind, value) as engine/host.py sends them."""

    def __init__(self, settings: EngineSettings) -> None:
        self._log = tempfile.NamedTemporaryFile(prefix="prebake-engine-", suffix=".log", delete=False)  # noqa: SIM115
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "engine.host", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                # Not a session of its own: Linux schedules sessions as wholes (sched(7), autogroup), and an engine that
                # loaded beside one that generates then had an eighth of a processor where half of it was due.
                process_group=0,
                env=os.environ | _environment(settings),
            )
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", _REAPER, "reaper", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._connection = Connection(ours.detach())
        self._inbox: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.heard_s = time.monotonic()
        self._send_or_die(settings)
        threading.Thread(target=self._receive, daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the process and of its group."""
        return self._process.pid

    def send(self, order: str, value: Any = None) -> None:
        """Give an order. Raises EngineDied if nobody is there."""
        self._send_or_die((order, value))

    def receive(self, timeout_s: float) -> tuple[str, Any] | None:
        """The next message, None after the timeout. Raises EngineDied if the process is gone and all was read."""
        try:
            kind, value = self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if kind == "gone":
            self._inbox.put((kind, value))
            raise self._death()
        return kind, value

    def end(self) -> None:
        """End the whole group, for two seconds politely if it still listens; no process of it is left afterwards."""
        with suppress(EngineDied, subprocess.TimeoutExpired):
            self.send("close")
            self._process.wait(timeout=_POLITE_S)
        self.kill()
        Path(self._log.name).unlink(missing_ok=True)

    def kill(self) -> None:
        """End the whole group at once."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._wait_for_group()
        if self._reaper.stdin is not None and not self._reaper.stdin.closed:
            self._reaper.stdin.close()
        self._reaper.wait()
        self._log.close()

    def _wait_for_group(self) -> None:
        deadline = time.monotonic() + _CLOSE_S
        with suppress(ProcessLookupError, PermissionError):
            while time.monotonic() < deadline:
                os.killpg(self._process.pid, 0)
                time.sleep(0.01)

    def _send_or_die(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise self._death() from None

    def _receive(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                self.heard_s = time.monotonic()
                self._inbox.put(message)
        except (EOFError, OSError):
            self._inbox.put(("gone", None))

    def _death(self) -> EngineDied:
        text = Path(self._log.name).read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines()
        memory = [line for line in lines if _OUT_OF_MEMORY.search(line)]
        said = memory or [line for line in _RAISED.findall(text) if SEE_LOG not in line] or lines
        words = said[-1].strip()[:300] if said else "it said nothing"
        return EngineDied(f"{words} (log: {self._log.name})", out_of_memory=bool(memory))


def _environment(settings: EngineSettings) -> dict[str, str]:
    """What vLLM reads from the environment, where nobody set it."""
    wanted = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
        **({"HF_HUB_OFFLINE": "1"} if Path(settings.model).is_dir() else {}),
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}
