"""Who reads the blocks: this process for a small file, one process per core for a large one.

A worker (tasks/logs/worker.py) holds nothing but the rows of the file that is being read. It speaks only when it is
spoken to, and is given a block only when it waits for one, so neither side ever waits for the other to read.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from prebake.errors import PrebakeError
from storage.query_log import DayFiles
from tasks.logs.blocks import Block
from tasks.logs.rows import Job, RowReader, Tally

# Below this a worker's start (half a second) costs more than it saves.
SMALL_BYTES: Final = 16 * 2**20
# A worker needs the same memory for block after block: glibc keeps it (mallopt(3)) and asks for it once. And it has one
# core, where the threads of numpy's linear algebra, which nobody needs, would only take time from the others.
_ENVIRONMENT: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "OPENBLAS_NUM_THREADS": "1",
}


class WorkerLostError(PrebakeError):
    """A process that reads blocks has ended before its time."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Readers(Protocol):
    """Whoever reads the blocks of a file."""

    def read(self, blocks: Iterable[Block], folder: Path, source: str) -> Iterator[Tally]:
        """Read all blocks of one file; the last tallies name the Parquet files, which lie in ``folder``."""


class Alone:
    """This process reads the blocks itself."""

    def __init__(self, job: Job) -> None:
        self._reader = RowReader(job)

    def read(self, blocks: Iterable[Block], folder: Path, source: str) -> Iterator[Tally]:
        """Read block after block. Raises OSError if the disk refuses."""
        files = DayFiles(folder, source)
        for block in blocks:
            yield self._reader.read(block, files)
        yield self._reader.finish(files)


class Workers:
    """Processes that read blocks side by side, each with at most one block in hand."""

    def __init__(self, job: Job, count: int | None = None) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(count or cores()):
                self._start()
            for pipe in self._pipes:
                _send(pipe, job)
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        """A fresh interpreter: fork would copy the threads of Arrow and Delta half alive; spawn would run the
        program's main module again, which may take longer than the logs.
        """
        ours, theirs = Pipe()
        self._pipes.append(ours)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "tasks.logs.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**_ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C reaches the whole group; the parent decides, and its pipe says so
            )
        self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        """The ids of the processes."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """End the processes; nothing of theirs is worth waiting for: what counts is in files that are whole."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, blocks: Iterable[Block], folder: Path, source: str) -> Iterator[Tally]:
        """Hand out block after block. Raises OSError if the disk refuses, WorkerLostError if a worker dies."""
        for number, pipe in enumerate(self._pipes):
            own = folder / str(number)
            own.mkdir()
            _send(pipe, (own, source))
        idle, busy = list(self._pipes), list[Connection]()
        for block in blocks:
            if not idle:
                ready = _ready(busy)
                yield _receive(ready)
                busy.remove(ready)
                idle.append(ready)
            pipe = idle.pop()
            _send(pipe, block)
            busy.append(pipe)
        for pipe in busy:
            yield _receive(pipe)
        for pipe in self._pipes:
            _send(pipe, None)
        for pipe in self._pipes:
            yield _receive(pipe)


def _ready(busy: list[Connection]) -> Connection:
    ready = wait(busy)[0]
    return next(pipe for pipe in busy if pipe is ready)


def _send(pipe: Connection, message: object) -> None:
    try:
        pipe.send(message)
    except OSError:
        raise _died() from None


def _receive(pipe: Connection) -> Tally:
    try:
        answer = pipe.recv()
    except (EOFError, OSError):
        raise _died() from None
    if isinstance(answer, BaseException):
        raise answer
    tally: Tally = answer
    return tally


def _died() -> WorkerLostError:
    return WorkerLostError("an ingest worker was killed, out of memory perhaps; nothing is half-written, run it again")
