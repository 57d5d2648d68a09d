"""Many workers on one socket. In: settings, and signals. Out: as many workers as the settings say, for as long as it
runs: one that dies or hangs is replaced, a SIGHUP reaches all of them, a SIGTERM drains all of them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path
from time import monotonic

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from gateway.reread import read_again
from gateway.worker import Deferred, Worker
from prebake.settings import Settings

logger = logging.getLogger(__name__)


class Supervisor(Multiprocess):
    """uvicorn's supervisor, which hands a SIGHUP on instead of replacing the workers, and drains like one process.

    It never waits for a worker, as uvicorn's does for signs of life: signals would have to wait with it.
    """

    def __init__(self, config: uvicorn.Config, listener: socket.socket, settings: Settings, file: Path | None) -> None:
        super().__init__(config, [listener])
        self._settings = settings
        self._file = file
        self._workers: list[Worker] = []

    def init_processes(self) -> None:
        """Start as many workers as the settings say."""
        self._workers = [self._start() for _ in range(self.processes_num)]

    def keep_subprocess_alive(self) -> None:
        """Replace workers that died, and those that gave no sign of life for too long."""
        for place, worker in enumerate(self._workers):
            if worker.process.is_alive() and not worker.hangs(self._settings.gateway.hung_s):
                continue
            what = "hung" if worker.process.is_alive() else "died"
            worker.kill()
            worker.join()
            if worker.exitcode == STARTUP_FAILURE:  # the next one would fail in the same way
                logger.error("gateway: worker %d could not start; the gateway ends", worker.pid)
                self.should_exit.set()
                return
            logger.warning("gateway: worker %d %s and is replaced", worker.pid, what)
            self._workers[place] = self._start()

    def _start(self) -> Worker:
        worker = Worker(self.config, self.sockets)
        worker.start()
        return worker

    def handle_hup(self) -> None:
        """Read the settings again; if they are good, workers do too, those that are still to come included."""
        settings = read_again(self._file, self._settings)
        if settings is None:
            return
        self._settings = settings
        self.config.app = Deferred(settings, self._file)
        for worker in self._workers:
            if worker.process.is_alive() and worker.pid:
                # One that is still starting dies of it and is replaced: so none goes by the old settings.
                os.kill(worker.pid, signal.SIGHUP)

    def handle_ttin(self) -> None:
        """No more workers: the settings say how many there are."""

    def handle_ttou(self) -> None:
        """No fewer either."""

    def terminate_all(self) -> None:
        """Drain: while this process held the socket too, new connections would wait in it for nobody."""
        for listener in self.sockets:
            listener.close()
        for worker in self._workers:
            worker.terminate()

    def join_all(self) -> None:
        """Wait for the drain; a worker that hangs has no longer than that."""
        gateway = self._settings.gateway
        end = monotonic() + gateway.drain_s + gateway.hung_s
        for worker in self._workers:
            worker.process.join(max(0.0, end - monotonic()))
            if worker.process.is_alive():
                logger.warning("gateway: worker %d hung and is killed", worker.pid)
                worker.process.kill()
            worker.process.join()
