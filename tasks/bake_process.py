"""One bake worker as a process of its own: ``python -m tasks.bake_process FD`` is told what to bake on a socket.

It bakes until the plan is done, and drains when it is told to, when it gets a signal, or when who started it is gone.
"""

from __future__ import annotations

import sys
import threading
from multiprocessing.connection import Connection
from typing import Final

from prebake.errors import PrebakeError
from prebake.settings import Settings
from prebake.stop import Stop, stop_on_signals
from storage.store import open_store
from tasks.bake import BakeReport, bake

PARENT_GONE: Final = "the process that started this worker is gone"

Outcome = BakeReport | PrebakeError
Job = tuple[Settings, str, str, str]
"""Settings, plan, run, owner."""


def bake_until_done(settings: Settings, plan_id: str, run_id: str, owner: str, stop: Stop) -> Outcome:
    """Bake with a store of its own; the error is returned, for it must reach another process whole."""
    try:
        with open_store(settings) as store:
            return bake(store, settings, plan_id, run_id=run_id, owner=owner, stop=stop)
    except PrebakeError as error:
        return error


def main() -> None:
    """Serve the socket whose file descriptor is the first argument."""
    socket = Connection(int(sys.argv[1]))
    job: Job = socket.recv()
    with stop_on_signals() as stop:
        threading.Thread(target=_listen, args=(socket, stop), daemon=True).start()
        socket.send(bake_until_done(*job, stop))


def _listen(socket: Connection, stop: Stop) -> None:
    try:
        stop.request(socket.recv())
    except (EOFError, OSError):
        stop.request(PARENT_GONE)


if __name__ == "__main__":
    main()
