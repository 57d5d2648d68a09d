"""One worker of the chaos benchmark from its start to its death, as seen from outside: by signals, /proc and ledger."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from benchmarks._chaos_worker import was_asked
from benchmarks._token_meter import FOLDER, read_meters
from prebake.settings import Settings
from tests.integration.capacity.metadata import EC2, serve_metadata

_ORPHAN_S = 20.0
_LOOK_S = 0.01
_GLANCE_S = 0.5
_LONGEST_S = 60.0
_NOTICE = EC2 + "spot/instance-action"


class Process(NamedTuple):
    """A process: its id, its group, and when it started, because ids come again."""

    pid: int
    group: int
    started: int


class Life:
    """A running worker. ``killed``: it or its engine was, by -9; how long after a notice it held a lease, and lived."""

    def __init__(self, settings: Settings, plan_id: str, name: str, folder: Path) -> None:
        self.plan_id, self.name = plan_id, name
        self.folder = folder / name
        self.killed = False
        self.durable_s: float | None = None
        self.exit_s: float | None = None
        self.leases_kept = 0
        self._ledger = Path(settings.store.root) / "ledger.db"
        self._mark = f"{FOLDER}={self.folder}\0".encode()
        self._groups: set[int] = set()
        self._bytecode = folder / "bytecode"
        self._command = [settings.model_dump_json(), plan_id, name, str(self.folder)]
        self._stack = ExitStack()

    def __enter__(self) -> Life:
        self.folder.mkdir()
        self._metadata = self._stack.enter_context(serve_metadata())
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks._chaos_worker", *self._command],
                stdout=log,
                stderr=log,
                env=os.environ | self._environment(),
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._stack.close()

    def _environment(self) -> dict[str, str]:
        return {
            FOLDER: str(self.folder),
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self._metadata.url,
            "VLLM_LOGGING_LEVEL": "ERROR",
            # A hundred loads: compile the libraries once.
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(self._bytecode),
        }

    @property
    def exit_code(self) -> int | None:
        """None while it lives."""
        return self._process.poll()

    def complaint(self) -> str:
        """The end of what it said."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def wait(self) -> None:
        """Until it has ended."""
        while self.sleep(_LONGEST_S):
            pass

    def sleep(self, seconds: float) -> bool:
        """Wait, but no longer than it lives; whether it is alive."""
        wake_s = time.monotonic() + seconds
        while self.exit_code is None and (left_s := wake_s - time.monotonic()) > 0:
            self._note_engines()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(min(left_s, _GLANCE_S))
        return self.exit_code is None

    def wait_until_baking(self) -> None:
        """Until its engine generates tokens, for the first time or after a kill of it; or until it ends."""
        before = self._generated()
        while self.exit_code is None and not (was_asked(self.folder) and self._generated() > before):
            time.sleep(_LOOK_S)

    def _generated(self) -> int:
        return sum(tokens for tokens, _ in read_meters(self.folder))

    def processes(self) -> list[Process]:
        """All of its living processes: those with its mark in their environment, and the groups of its engines."""
        return [process for process in _living() if process.group in self._groups or self._marked(process)]

    def _note_engines(self) -> list[Process]:
        """Its engines' processes; their groups are noted, for vLLM's own processes lose the mark with their titles."""
        engines = [p for p in _living() if b"engine.host" in _read(p.pid, "cmdline") and self._marked(p)]
        self._groups.update(engine.pid for engine in engines)
        return engines

    def _marked(self, process: Process) -> bool:
        return self._mark in _read(process.pid, "environ") + b"\0"

    def kill(self) -> None:
        """End it by kill -9."""
        self._note_engines()
        self.killed = True
        self._process.kill()
        self._process.wait()

    def kill_engine(self, *, core: bool) -> Callable[[], list[Process]] | None:
        """End its engine's process, or vLLM's core in it, by kill -9; None if there is none yet.

        Returns what tells which processes of that engine are alive.
        """
        for engine in self._note_engines():
            group = [process for process in _living() if process.group == engine.pid]
            victims = [p for p in group if b"EngineCore" in _read(p.pid, "cmdline")] if core else [engine]
            for victim in victims[:1]:
                with suppress(ProcessLookupError):
                    os.kill(victim.pid, signal.SIGKILL)
                self.killed = True
                return lambda: [process for process in _living() if process in group]
        return None

    def notice(self, *, metadata: bool) -> bool:
        """Tell it to stop, wait until it has ended, and look whether it was durable then; False if it was not told."""
        if metadata:
            self._metadata.items[_NOTICE] = '{"action": "terminate", "time": "2026-01-05T03:02:00Z"}'
            while _NOTICE not in self._metadata.told and self.exit_code is None:
                time.sleep(_LOOK_S)
            told_s = self._metadata.told.get(_NOTICE)
        else:
            told_s = time.monotonic()
            self._process.send_signal(signal.SIGTERM)
        if told_s is None:  # it was done, and ended before it asked
            return False
        leased = True
        while self.exit_code is None and time.monotonic() < told_s + _LONGEST_S:
            if leased:  # still when last looked
                self.durable_s = time.monotonic() - told_s
            leased = self._leases() > 0
            self.sleep(_LOOK_S)
        if self.exit_code is None:
            self.kill()
        self.exit_s = time.monotonic() - told_s
        self.leases_kept = self._leases()
        return True

    def _leases(self) -> int:
        """How many shards it holds. It lets go of one when all that it finished of it is committed."""
        with closing(sqlite3.connect(f"file:{self._ledger}?mode=ro", uri=True, timeout=30)) as ledger:
            query = "SELECT count(*) FROM shards WHERE owner = ? AND status = 'leased'"
            count: int = ledger.execute(query, [self.name]).fetchone()[0]
            return count


class Orphans:
    """Looks 20 s after each death whether anything is left, and says on standard error what it is."""

    def __init__(self) -> None:
        self._timers: list[threading.Timer] = []
        self._found: set[Process] = set()

    def watch(self, left: Callable[[], Iterable[Process]]) -> None:
        """Note a death: what ``left`` returns in 20 s are orphans."""
        timer = threading.Timer(_ORPHAN_S, lambda: self._look(left))
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def _look(self, left: Callable[[], Iterable[Process]]) -> None:
        for process in left():
            words = _read(process.pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")
            print(f"orphan: {process}: {words[:300]}", file=sys.stderr)
            self._found.add(process)

    def count(self) -> int:
        """How many there were, when the last was looked for."""
        for timer in self._timers:
            timer.join()
        return len(self._found)


def _living() -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _read(int(entry.name), "stat").rpartition(b")")[2].split()
            if fields and fields[0] != b"Z":
                yield Process(int(entry.name), int(fields[2]), int(fields[19]))


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended
        return b""
