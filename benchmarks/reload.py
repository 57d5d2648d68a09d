"""Nights roll out to a gateway of two processes under load: swaps, and requests that failed or mixed two nights.

``swaps`` counts each process's change to a new snapshot, from disk and, a twentieth of them, from S3 (moto's server).
Clients ask without a pause; ``failed`` are the requests that were no whole hit, ``mixed`` those whose body, run and
snapshot are not of one night, or of an older night than the same connection had seen. ``mapped`` is the most snapshots
that one process had mapped at once, ``kept`` what is left on disk beyond what the settings keep.
"""

from __future__ import annotations

import http.client
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Final
from unittest.mock import patch
from urllib.parse import urlsplit

import boto3
import httpx
import orjson

from benchmarks import Measured
from benchmarks.lookup import answer, body, fingerprint
from prebake.manifest import DATA, SNAPSHOTS
from prebake.settings import Store
from storage.objects import Objects, open_objects
from storage.snapshot import publish_snapshot
from tests.gateway_bed import Running, free_port, running, wait_until

_WORKERS: Final = 2
_CLIENTS: Final = 4
_START_S: Final = 300.0
_KEEP: Final = 3
_SWAP_S: Final = 300.0  # far longer than it takes, on a machine that does much else too
_SETTINGS: Final = f"""
[gateway]
workers = {_WORKERS}
reload_s = 0.01
log = false

[[routes]]
name = "faq"
scope = "shared"
fold = "text"
"""
_S3: Final = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "PREBAKE_PRIVACY__USER_SALT": "a salt for the benchmark",
}


@dataclass
class Seen:
    """What clients and the watch have counted."""

    requests: int = 0
    failed: int = 0
    mixed: int = 0
    swaps: int = 0
    mapped: int = 0
    kept: int = 0
    seconds: float = 0.0


def run(size: int = 1000) -> Measured:
    """Publish until all processes together have swapped ``size`` times, then a twentieth of that from S3."""
    with TemporaryDirectory(prefix="prebake-benchmark-") as name:
        folder = Path(name)
        root = folder / "prebake-store"
        disk = _roll_out(folder, Store(root=str(root)), size, lambda: len(_folders(root / SNAPSHOTS)) - _KEEP)
        cache = folder / "cache"
        with _s3(folder) as store:
            s3 = _roll_out(folder, store, max(2, size // 20), lambda: len(_folders(next(cache.iterdir()))) - 1)
    return Measured(
        ratios={name: getattr(disk, name) + getattr(s3, name) for name in ("swaps", "failed")},
        sizes={
            **{name: getattr(disk, name) + getattr(s3, name) for name in ("mixed", "requests")},
            "swaps_s3": s3.swaps,
            "mapped": max(disk.mapped, s3.mapped),
            "kept": max(disk.kept, 0) + max(s3.kept, 0),
        },
        figures={"swaps_per_s": disk.swaps / disk.seconds, "swaps_per_s_s3": s3.swaps / s3.seconds},
    )


def _roll_out(folder: Path, store: Store, swaps: int, kept: Callable[[], int]) -> Seen:
    objects, seen, nights = open_objects(store), Seen(), _Nights()
    nights.publish(objects)
    with _gateway(folder, store) as gateway:
        wait_until(lambda: _swaps(gateway) >= _WORKERS, _SWAP_S)
        stop = threading.Event()
        clients = [threading.Thread(target=_ask, args=(gateway.url, nights, seen, stop)) for _ in range(_CLIENTS)]
        first, start = _swaps(gateway), perf_counter()
        for client in clients:
            client.start()
        try:
            while seen.swaps < swaps:
                nights.publish(objects)
                wanted = first + seen.swaps + _WORKERS
                wait_until(lambda wanted=wanted: _looked(gateway, seen) >= wanted, _SWAP_S)
                seen.swaps = _swaps(gateway) - first
        finally:
            stop.set()
            for client in clients:
                client.join()
        seen.seconds = perf_counter() - start
        wait_until(lambda: kept() <= 0, _SWAP_S)
        seen.kept = kept()
    return seen


class _Nights:
    """Snapshots of one answer each, which says the number of its night, as its run does."""

    def __init__(self) -> None:
        self.request = orjson.dumps(body(0))
        self._key = fingerprint(body(0))
        self._number = 0

    def publish(self, objects: Objects) -> None:
        """One night more."""
        self._number += 1
        now = datetime.now(UTC)
        baked = answer(self._number, self._key, now)
        baked = baked._replace(names=baked.names._replace(run_id=f"night-{self._number}"))
        publish_snapshot(objects, [baked], run_id=f"night-{self._number}", keep=_KEEP, now=now)


def _ask(url: str, nights: _Nights, seen: Seen, stop: threading.Event) -> None:
    """Ask until told to stop; the night of an answer is in its text, its run and its snapshot's number."""
    client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    newest = 0
    while not stop.is_set():
        seen.requests += 1
        try:
            client.request("POST", "/v1/chat/completions", nights.request, {"Content-Type": "application/json"})
            response = client.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            seen.failed += 1
            client.close()
            continue
        if response.status != 200 or response.headers["x-prebake"] != "hit":
            seen.failed += 1
            continue
        text = orjson.loads(content)["choices"][0]["message"]["content"]
        said = {int(number) for number in re.findall(r"Article (\d+) ", text)}
        run = int(response.headers["x-prebake-run"].removeprefix("night-"))
        snapshot = int(response.headers["x-prebake-snapshot"].split("-")[0])
        seen.mixed += said != {run} or snapshot != run or run < newest
        newest = run
    client.close()


@contextmanager
def _gateway(folder: Path, store: Store) -> Iterator[Running]:
    """The gateway over that store; every request is a hit, so that it needs no upstream."""
    settings, port = folder / "prebake.toml", free_port()
    settings.write_text(_SETTINGS)
    environment = {
        "PREBAKE_STORE__ROOT": store.root,
        "PREBAKE_GATEWAY__UPSTREAM": "http://127.0.0.1:9/v1",
        "PREBAKE_GATEWAY__CACHE_DIR": str(folder / "cache"),
    }
    if store.s3_endpoint_url:
        environment["PREBAKE_STORE__S3_ENDPOINT_URL"] = store.s3_endpoint_url
    command = [sys.executable, "-m", "prebake", "--settings", str(settings), "serve", "--port", str(port)]
    with running(
        command, f"http://127.0.0.1:{port}", "/healthz", folder / "gateway.log", environment, start_s=_START_S
    ) as server:
        yield server


@contextmanager
def _s3(folder: Path) -> Iterator[Store]:
    """A store in a bucket of moto's server."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    with patch.dict(os.environ, _S3), running(command, url, "/moto-api/", folder / "s3.log", {}, start_s=_START_S):
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="prebake")
        yield Store(root="s3://prebake/benchmark", s3_endpoint_url=url)


def _looked(gateway: Running, seen: Seen) -> int:
    """Swaps so far; in passing, how many snapshots each process has mapped."""
    process = gateway.process.pid
    try:
        for worker in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            maps = Path("/proc", worker, "maps").read_text()
            seen.mapped = max(seen.mapped, len({line.split()[4] for line in maps.splitlines() if DATA in line}))
    except OSError:
        pass  # only Linux tells
    return _swaps(gateway)


def _swaps(gateway: Running) -> int:
    """Snapshots that all processes together have begun to serve."""
    text = httpx.get(f"{gateway.url}/metrics").text
    found = re.search(r'^prebake_snapshot_reloads_total\{result="served"\} (\S+)$', text, re.M)
    return int(float(found[1])) if found else 0


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
