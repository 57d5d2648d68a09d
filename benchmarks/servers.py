"""One ready answer from each server that the gateway could run on, beside the gateway's own hits with all that it does.

All run with two workers on the same two cores as wrk, round by round in turn, and are sent the same requests.
``ratio_starlette``, ``ratio_granian_asgi`` and ``ratio_granian_rsgi`` are requests per second over those of plain ASGI
on uvicorn (httptools, uvloop); ``ratio_prebake`` is the gateway, with keys, lookup, request log and metrics, over it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks import Measured, interleaved
from benchmarks._front import CHATS, WORKERS, Front, ask, gateway, upstream
from benchmarks._rivals import debian, missing, servers
from benchmarks._wrk import Load
from benchmarks.gateway import measure
from tests.gateway_bed import free_port, running

_EACH: Final = ["--workers", str(WORKERS), "--loop", "uvloop", "--log-level", "error"]
_UVICORN: Final = ["uvicorn", *_EACH, "--http", "httptools", "--no-access-log"]
_GRANIAN: Final = ["granian", *_EACH, "--no-ws"]
_CONTESTANTS: Final = {
    "uvicorn": [*_UVICORN, "benchmarks._ready:asgi"],
    "starlette": [*_UVICORN, "--factory", "benchmarks._ready:starlette"],
    "granian_asgi": [*_GRANIAN, "--interface", "asginl", "benchmarks._ready:asgi"],
    "granian_rsgi": [*_GRANIAN, "--interface", "rsgi", "benchmarks._ready:rsgi"],
}


def unavailable() -> str:
    """Why it cannot run here: what is missing, and how to get it."""
    return missing(lambda: debian("wrk"), servers)


def run(size: int = 5) -> Measured:
    """Measure for ``size`` rounds of three seconds each."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # all that is started here inherits it
    with TemporaryDirectory(prefix="prebake-benchmark-") as name, ExitStack() as stack:
        folder = Path(name)
        fronts = {"prebake": stack.enter_context(gateway(folder, stack.enter_context(upstream(folder)).url))}
        ready = {"READY_BODY": ask(fronts["prebake"].server.url, 0).text}
        for name, arguments in _CONTESTANTS.items():
            port = free_port()
            command = [servers(), "-m", *arguments, "--port", str(port)]
            server = running(command, f"http://127.0.0.1:{port}", "/", folder / f"{name}.log", ready)
            fronts[name] = Front(stack.enter_context(server), CHATS)
        loads: dict[str, list[Load]] = {name: [] for name in fronts}
        medians = interleaved(
            {name: measure(front, folder / f"{name}.lua", loads[name]) for name, front in fronts.items()}, size
        )
    if failed := sum(each.failed for found in loads.values() for each in found):
        raise AssertionError(f"{failed} requests failed")
    return Measured(
        ratios={f"ratio_{name}": value / medians["uvicorn"] for name, value in medians.items() if name != "uvicorn"},
        sizes={"rounds": size, "workers": WORKERS},
        figures={f"{name}_per_s": value for name, value in medians.items()},
    )
