"""Runs the gateway: one listening socket, one or more processes, a drain on SIGTERM, other settings on SIGHUP.

In: settings and the file they are from. Out: an exit code of 0.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.supervisors import Multiprocess

from gateway.metrics import MULTIPROCESS_DIR
from gateway.protocol import GuardedProtocol
from gateway.reread import read_again
from prebake.errors import SettingsError
from prebake.redaction import log_to_stderr
from prebake.settings import Settings

BACKLOG = 2048
# Longer than clients and load balancers keep idle connections, so that they and not we close them.
KEEP_ALIVE_S = 75
# On a busy machine a worker takes longer than uvicorn's 5 s to say that it lives; one that died is seen at once.
HEALTHCHECK_S = 60


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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self._ready is not None and self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Drain at the first signal; a second Ctrl-C ends at once."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


class Supervisor(Multiprocess):
    """uvicorn's supervisor, which hands a SIGHUP on instead of replacing the workers, and drains like one process."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, settings: Settings, file: Path | None) -> None:
        super().__init__(config, [listener])
        self._settings = settings
        self._file = file

    def handle_hup(self) -> None:
        """Read the settings again; if they are good, workers do too, those that are still to come included."""
        settings = read_again(self._file, self._settings)
        if settings is None:
            return
        self._settings = settings
        self.config.app = Deferred(settings, self._file)
        for process in self.processes:
            if process.process.is_alive() and process.pid:
                # One that is still starting dies of it and is replaced: so none goes by the old settings.
                os.kill(process.pid, signal.SIGHUP)

    def keep_subprocess_alive(self) -> None:
        """Replace workers that died. uvicorn also pings the others: signals would wait for one that is starting."""
        if not all(process.process.is_alive() for process in self.processes):
            super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        """Drain: while this process held the socket too, new connections would wait in it for nobody."""
        for listener in self.sockets:
            listener.close()
        super().terminate_all()


def serve(
    settings: Settings,
    *,
    host: str,
    port: int,
    file: Path | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then end what is in flight and return. Blocks; main thread only.

    ``file`` is where the settings are from: it is read again on SIGHUP.
    ``ready`` is called with the address once connections are answered; without it the address is printed on standard
    output, so that a parent process can read the port it asked to be chosen (0). Raises SettingsError if the address
    cannot be used.
    """
    listener = _listen(host, port)
    address = f"http://{_bracketed(host)}:{listener.getsockname()[1]}"
    announce = ready or _print_address
    config = _config(settings, file)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is somebody to read the settings again
    with listener:
        if settings.gateway.workers == 1:
            Server(config, lambda: announce(address)).run(sockets=[listener])
        else:
            _run_workers(Supervisor(config, listener, settings, file), lambda: announce(address))


def _print_address(address: str) -> None:
    print(f"serving on {address}", flush=True)


def _run_workers(supervisor: Supervisor, announce: Callable[[], None]) -> None:
    """uvicorn's supervisor restarts workers that die; they share the socket and, through the files, the metrics."""
    with tempfile.TemporaryDirectory(prefix="prebake-metrics-") as folder:
        os.environ[MULTIPROCESS_DIR] = folder
        announce()  # the socket listens: connections wait there until the first worker takes them
        supervisor.run()


def _config(settings: Settings, file: Path | None) -> uvicorn.Config:
    return uvicorn.Config(
        Deferred(settings, file),
        factory=True,
        workers=settings.gateway.workers,
        timeout_worker_healthcheck=HEALTHCHECK_S,
        loop="uvloop",
        http=GuardedProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,  # an upstream's own Server and Date headers come through
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.gateway.drain_s) or 1,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"gateway: cannot listen on {host}:{port}: {error.strerror or error}; choose another host or port"
        ) from None
    listener.set_inheritable(True)
    return listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
