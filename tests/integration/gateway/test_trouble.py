"""Disk, store, upstream and clock may fail: what can be answered is answered, nothing expired is, nobody is harmed.

A damaged or deleted store is in test_reloading, a silent, dying or absent upstream in test_misses, signals in
test_signals.
"""

from __future__ import annotations

import resource
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from gateway.app import Gateway
from prebake.loading import load
from prebake.settings import Settings
from tests.gateway_bed import (
    Running,
    answer_to,
    ask,
    free_port,
    gateway_server,
    logged,
    publish,
    settings_of,
    wait_until,
    write_settings,
)

KNOWN = ask("Known?")


def post(server: Running, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)


def test_hits_go_on_without_upstream_without_files_and_with_a_full_disk(tmp_path: Path) -> None:
    publish(tmp_path, [answer_to(settings_of(tmp_path), KNOWN, "Yes. " * 1000)])
    with gateway_server(tmp_path, f"http://127.0.0.1:{free_port()}", log_flush_s=0.1) as server:
        good = post(server, KNOWN).json()["choices"]
        assert post(server, ask("Unknown?")).status_code == 502  # the upstream is down
        assert post(server, KNOWN).json()["choices"] == good

        snapshot = tmp_path / "prebake-store" / "snapshots" / server.ready()["snapshot"]
        shutil.rmtree(snapshot)  # while it is mapped; the pointer still names it
        assert [post(server, KNOWN).json()["choices"] for _ in range(20)] == [good] * 20

        wait_until(lambda: len(logged(tmp_path)) == 23)
        full_disk(server, 1000)
        assert {post(server, KNOWN).status_code for _ in range(20)} == {200}
        wait_until(lambda: "request log: cannot be written" in server.log.read_text())
        assert len(logged(tmp_path)) == 23
        full_disk(server, resource.RLIM_INFINITY)
        wait_until(lambda: len(logged(tmp_path)) == 43)  # what waited in memory is not lost
    leftovers = [file for file in (tmp_path / "prebake-store" / "gateway-log").rglob("*") if file.is_file()]
    assert all(file.suffix == ".parquet" for file in leftovers)


def full_disk(server: Running, limit: int) -> None:
    """No file of the gateway's may grow longer than this: writing fails half-way, as on a full disk."""
    hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (limit, hard))


class Clock:
    """The time of day as the gateway sees it: as it is, and as far ahead or behind as a test says."""

    def __init__(self) -> None:
        self.ahead = timedelta()
        self._time = time.time

    def time(self) -> float:
        return self._time() + self.ahead.total_seconds()

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def now(self, zone: Any) -> datetime:
        return datetime.fromtimestamp(self.time(), zone)

    def fromtimestamp(self, second: float, zone: Any) -> datetime:
        return datetime.fromtimestamp(second, zone)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.time", clock.time)
    monkeypatch.setattr("prebake.lookup.time_ns", clock.time_ns)
    monkeypatch.setattr("gateway.chat.datetime", clock, raising=False)
    return clock


def settings_with(folder: Path, upstream: Running) -> Settings:
    file = write_settings(folder)
    with file.open("a") as out:
        out.write(f'\n[gateway]\nupstream = "{upstream.url}/v1"\nlog_flush_s = 0.1\n')
    return load(file)


def test_a_clock_that_jumps_serves_nothing_expired_and_breaks_nothing(
    tmp_path: Path, upstream: Running, clock: Clock
) -> None:
    settings = settings_with(tmp_path, upstream)
    publish(tmp_path, [answer_to(settings, KNOWN, "Yes", expires_at=datetime.now(UTC) + timedelta(hours=1))])
    with TestClient(Gateway(settings)) as client:
        outcomes = []
        for ahead in (0, 2, 24 * 365 * 50, -2, -24 * 365 * 30, 0):
            clock.ahead = timedelta(hours=ahead)
            response = client.post("/v1/chat/completions", json=KNOWN)
            assert response.status_code == 200
            assert int(response.headers.get("age", 0)) >= 0
            outcomes.append(response.headers["x-prebake"])
        assert outcomes == ["hit", "miss", "miss", "hit", "hit", "hit"]
        wait_until(lambda: len(logged(tmp_path)) == 6)
    assert len({row["ts"].year for row in logged(tmp_path)}) == 3
