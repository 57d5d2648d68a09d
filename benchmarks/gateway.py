"""Hits of the gateway beside nginx with the same bytes in files and LiteLLM's proxy with its cache in memory.

All run with two workers on the same two cores as wrk, round by round in turn; ours with keys, request log and metrics.
``ratio_nginx`` and ``ratio_litellm`` are our requests per second over theirs, ``ratio_strangers`` those over nginx's
where no request has the bytes of one before, because each is another user's. ``miss_overhead_p50_ms`` is what a
request that goes to the model costs more through the gateway than straight, the same client asking both in turn.
"""

from __future__ import annotations

import http.client
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from urllib.parse import urlsplit

import httpx
import orjson

from benchmarks import Measured, interleaved
from benchmarks._front import CHAT, HEADERS, QUESTIONS, STRANGERS, Front, asked, gateway, litellm_proxy, nginx, upstream
from benchmarks._rivals import debian, litellm, missing
from benchmarks._wrk import Load, load, script
from benchmarks.lookup import body
from tests.gateway_bed import Running

_ROUND_S = 3
_MISSES = 1000


def unavailable() -> str:
    """Why it cannot run here: what is missing, and how to get it."""
    return missing(lambda: debian("nginx"), lambda: debian("wrk"), litellm)


def run(size: int = 5) -> Measured:
    """Measure for ``size`` rounds of three seconds each."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # all that is started here inherits it
    with TemporaryDirectory(prefix="prebake-benchmark-") as name, ExitStack() as stack:
        folder = Path(name)
        model = stack.enter_context(upstream(folder))
        # LiteLLM has a model server of its own: which of its two caches knows a question is chance, no miss of ours.
        other = Path(stack.enter_context(TemporaryDirectory(prefix="prebake-benchmark-")))
        ours = stack.enter_context(gateway(folder, model.url))
        overhead = _miss_overhead(ours.server, model, _MISSES)
        fronts = {
            "nginx": stack.enter_context(nginx(folder, ours)),
            "ours": ours,
            "strangers": Front(ours.server, STRANGERS),
            "litellm": stack.enter_context(litellm_proxy(folder, stack.enter_context(upstream(other)).url)),
        }
        before = asked(model)
        loads: dict[str, list[Load]] = {name: [] for name in fronts}
        medians = interleaved(
            {name: measure(front, folder / f"{name}.lua", loads[name]) for name, front in fronts.items()}, size
        )
        if (missed := asked(model) - before) or _hits(ours.server) < sum(
            load.per_s for load in loads["ours"] + loads["strangers"]
        ):
            raise AssertionError(f"not only hits were measured: {missed} requests went to the model")
    if failed := sum(each.failed for name in ("nginx", "ours", "strangers") for each in loads[name]):
        raise AssertionError(f"{failed} requests failed")
    return Measured(
        ratios={
            "ratio_nginx": medians["ours"] / medians["nginx"],
            "ratio_strangers": medians["strangers"] / medians["nginx"],
            "ratio_litellm": medians["ours"] / medians["litellm"],
            "miss_overhead_p50_ms": overhead["overhead"],
        },
        sizes={"rounds": size, "questions": QUESTIONS, "misses": _MISSES},
        figures={
            **{f"{name}_per_s": value for name, value in medians.items()},
            **{f"{name}_p99_ms": median(load.p99_ms for load in found) for name, found in loads.items()},
            "miss_p50_ms": overhead["ours"],
            "upstream_p50_ms": overhead["straight"],
        },
    )


def measure(front: Front, file: Path, loads: list[Load]) -> Callable[[], float]:
    """A round of wrk, its script in ``file``: gives requests per second, and adds all that wrk saw to ``loads``."""
    lua = script(file, front.requests, HEADERS)

    def round_of_it() -> float:
        loads.append(load(front.server.url, lua, _ROUND_S))
        return loads[-1].per_s

    return round_of_it


def _hits(server: Running) -> float:
    """Hits that all workers have counted; of the last 0.25 s, perhaps only those of the one that answers."""
    text = httpx.get(f"{server.url}/metrics", headers=HEADERS).text
    return sum(float(value) for value in re.findall(r'^prebake_requests_total\{.*cache="hit".*\} (\S+)$', text, re.M))


def _miss_overhead(ours: Running, model: Running, times: int) -> dict[str, float]:
    """Milliseconds: medians of a miss, of the same request straight to the model, and of the difference."""
    question = orjson.dumps(body(10**9))
    found: dict[str, list[float]] = {"ours": [], "straight": []}
    with ExitStack() as stack:
        clients = {
            name: http.client.HTTPConnection(urlsplit(server.url).netloc)
            for name, server in (("ours", ours), ("straight", model))
        }
        for client in clients.values():
            stack.callback(client.close)
        for _ in range(times):
            for name, client in clients.items():
                found[name].append(_ask(client, question))
    differences = [through - straight for through, straight in zip(found["ours"], found["straight"], strict=True)]
    return {name: median(values) * 1e3 for name, values in (*found.items(), ("overhead", differences))}


def _ask(client: http.client.HTTPConnection, question: bytes) -> float:
    start = perf_counter()
    client.request("POST", CHAT, question, HEADERS)
    response = client.getresponse()
    if response.status != 200 or not response.read():
        raise AssertionError(f"status {response.status} instead of an answer")
    return perf_counter() - start
