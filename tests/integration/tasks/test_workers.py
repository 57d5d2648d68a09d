"""The processes that read a large log: whatever ends one of them, the reader hears of it and never waits for ever."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest

from prebake.settings import Settings
from tasks.logs.blocks import Block, Lines
from tasks.logs.rows import Job, Tally, job_of
from tasks.logs.workers import WorkerLostError, Workers

WAIT_S = 120  # whoever waits longer waits for ever


@pytest.fixture
def job() -> Job:
    return job_of(Settings(), "openai", b"salt", 9_000_000_000_000_000)


def block(first: int, rows: int = 50) -> Lines:
    line = {"ts": 1_791_806_400, "model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    return Lines(first, (orjson.dumps(line) + b"\n") * rows)


def read(workers: Workers, blocks: Iterator[Block], folder: Path) -> Tally:
    def everything() -> Tally:
        total = Tally()
        for tally in workers.read(blocks, folder, "source"):
            total += tally
        return total

    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(everything)
        try:
            return reading.result(timeout=WAIT_S)
        except TimeoutError:
            workers.close()  # lets the thread end
            raise


@pytest.mark.parametrize("after", [0, 1, 2, 7])
def test_a_worker_that_is_killed_is_an_error_that_says_so(job: Job, tmp_path: Path, after: int) -> None:
    with Workers(job, 2) as workers:

        def blocks() -> Iterator[Block]:
            for number in range(20):
                if number == after:
                    os.kill(workers.pids[0], signal.SIGKILL)
                yield block(1 + 50 * number)

        with pytest.raises(WorkerLostError, match="an ingest worker was killed, out of memory perhaps"):
            read(workers, blocks(), tmp_path)


def test_a_worker_killed_with_a_block_in_hand_is_an_error_too(job: Job, tmp_path: Path) -> None:
    with Workers(job, 2) as workers:
        read(workers, iter([block(1)]), tmp_path)  # both are up
        os.kill(workers.pids[1], signal.SIGSTOP)  # it takes its block and never answers

        def blocks() -> Iterator[Block]:
            yield from (block(1), block(51))
            os.kill(workers.pids[1], signal.SIGKILL)

        (tmp_path / "second").mkdir()
        with pytest.raises(WorkerLostError, match="worker was killed"):
            read(workers, blocks(), tmp_path / "second")


def test_what_goes_wrong_in_a_worker_is_raised_where_its_rows_are_awaited(job: Job, tmp_path: Path) -> None:
    def blocks() -> Iterator[Block]:
        yield block(1)
        for own in tmp_path.iterdir():
            own.rename(tmp_path.parent / f"gone-{own.name}")

    with Workers(job, 2) as workers, pytest.raises(OSError, match="No such file"):
        read(workers, blocks(), tmp_path)


def test_more_rejects_than_a_pipe_holds_are_told_all_the_same(job: Job, tmp_path: Path) -> None:
    with Workers(job, 2) as workers:
        total = read(workers, (Lines(1 + 20_000 * number, b"bad\n" * 20_000) for number in range(6)), tmp_path)
    assert (total.rows, len(total.rejects)) == (0, 120_000)
    assert len({line for line, _ in total.rejects}) == 120_000


def test_workers_end_with_the_process_that_started_them_even_if_it_is_killed() -> None:
    code = (
        "import time; from prebake.settings import Settings; from tasks.logs.rows import job_of\n"
        "from tasks.logs.workers import Workers\n"
        "workers = Workers(job_of(Settings(), 'openai', b'salt', 0), 2)\n"
        "print(*workers.pids, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        ends = [os.pidfd_open(pid) for pid in pids]
        parent.kill()
    for end in ends:  # a process's descriptor can be read once it has ended
        assert select.select([end], [], [], WAIT_S)[0] == [end]
        os.close(end)
