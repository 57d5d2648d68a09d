"""A process that reads blocks for the one that started it: ``python -m tasks.logs.worker FD``.

In, through the socket FD: a Job, then for each file its (folder, source), its blocks, and None for its end. Out: a
Tally for each block and each end, or the error that it met. It ends when the socket closes, so none outlives the
process that started it, however that one dies.
"""

from __future__ import annotations

import gc
import sys
from importlib.abc import MetaPathFinder
from multiprocessing.connection import Connection

from storage.query_log import DayFiles
from tasks.logs.rows import Job, RowReader


def work(pipe: Connection) -> None:
    """Read blocks until the pipe closes."""
    job: Job = pipe.recv()
    reader = RowReader(job)
    files: DayFiles
    while True:
        message = pipe.recv()
        if isinstance(message, tuple):
            files = DayFiles(*message)
            continue
        try:
            answer: object = reader.finish(files) if message is None else reader.read(message, files)
        except Exception as error:  # noqa: BLE001 - it is raised where the blocks come from
            answer = error
        pipe.send(answer)


class _NoPandas(MetaPathFinder):
    """Arrow imports pandas wherever it is installed, for 0.2 s; a worker needs nothing of it."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("an ingest worker does without pandas", name=fullname)


if __name__ == "__main__":
    sys.meta_path.insert(0, _NoPandas())
    gc.disable()  # rows make no cycles, and looking for some among all that is remembered takes a third of the time
    try:
        work(Connection(int(sys.argv[1])))
    except (EOFError, OSError):  # the pipe is closed
        sys.exit()
