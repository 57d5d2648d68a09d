"""One process that serves. In: settings and the file they are from. Out: the application on a socket, a drain on
SIGTERM, and a sign of life whenever the supervisor asks for one.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from threading import Event
from time import monotonic
from types import FrameType

import uvicorn
from uvicorn.supervisors.multiprocess import Process

from prebake.redaction import log_to_stderr
from prebake.settings import Settings

# Until its modules are loaded a worker says nothing; where many start on a busy machine, that takes a while.
START_S = 60


class Deferred:
    """The application, built in the process that runs it: neither threads nor maps can be sent to a worker."""

    def __init__(self, settings: Settings, file: Path | None) -> None:
        self._settings = settings
        self._file = file
        self._log_level = logging.getLogger().level

    def __call__(self) -> object:
        """Build it."""
        log_to_stderr(self._log_level)  # a worker has no log of its own yet
        from gateway.app import application  # after PROMETHEUS_MULTIPROC_DIR is set, which its import reads

        return application(self._settings, self._file)


class Server(uvicorn.Server):
    """uvicorn's server, which says when it listens and for which a SIGTERM is a clean end, not a death by signal."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self._ready is not None and self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Drain at the first signal; a second Ctrl-C ends at once."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    def turn(self) -> None:
        """Return when the event loop, if it runs already, has turned; for another thread to call."""
        turned = Event()
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed, the process ends: nothing is there to wait for
                self._loop.call_soon_threadsafe(turned.set)
                turned.wait()


class Worker(Process):
    """A worker as its supervisor sees it: it says that it lives while its event loop turns, not only a thread of it."""

    _asked: float | None = None  # when a sign of life was asked for that has not come
    _lived = False  # one has come

    @cached_property
    def server(self) -> Server:
        """What runs in the worker's process."""
        return Server(self.config)

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, in the worker's process."""
        assert self.server  # noqa: S101 - made here, before uvicorn's thread looks for it: it must not make another
        super().target(sockets)

    def pong(self) -> None:
        """Give one sign of life, in the worker's process."""
        self.child_conn.recv()
        self.server.turn()
        self.child_conn.send(self.server.started)

    def hangs(self, after_s: float) -> bool:
        """Whether it owes a sign of life for longer than that; waits for nothing, and asks for the next one."""
        if self._asked is not None and self.parent_conn.poll():
            self.parent_conn.recv()
            self._asked, self._lived = None, True
        if self._asked is None:
            self.parent_conn.send(b"ping")
            self._asked = monotonic()
        return monotonic() - self._asked > (after_s if self._lived else max(after_s, START_S))
