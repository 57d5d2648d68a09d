"""Runs the gateway: one listening socket, one or more processes, a drain on SIGTERM, other settings on SIGHUP.

In: settings and the file they are from. Out: an exit code of 0.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import uvicorn

from gateway.metrics import MULTIPROCESS_DIR
from gateway.protocol import GuardedProtocol
from gateway.supervisor import Supervisor
from gateway.worker import Deferred, Server
from prebake.errors import SettingsError
from prebake.settings import Settings

BACKLOG = 2048
# Longer than clients and load balancers keep idle connections, so that they and not we close them.
KEEP_ALIVE_S = 75


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
    """Workers share the socket and, through the files, the metrics."""
    with tempfile.TemporaryDirectory(prefix="prebake-metrics-") as folder:
        os.environ[MULTIPROCESS_DIR] = folder
        announce()  # the socket listens: connections wait there until the first worker takes them
        supervisor.run()


def _config(settings: Settings, file: Path | None) -> uvicorn.Config:
    return uvicorn.Config(
        Deferred(settings, file),
        factory=True,
        workers=settings.gateway.workers,
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
