"""The gateway as a process: it says where it listens, drains on SIGTERM, and shares one port among workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.gateway_bed import (
    ROOT,
    Running,
    answer_to,
    answers,
    ask,
    gateway_server,
    logged,
    publish,
    settings_of,
    wait_until,
    write_settings,
)


def test_sigterm_ends_what_is_in_flight_refuses_what_is_new_and_exits_0(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url) as gateway:
        received: list[str] = []
        begun = threading.Event()

        def listen() -> None:
            request = ask("Long story", "held", stream=True)
            with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=request, timeout=30) as response:
                for line in response.iter_lines():
                    received.append(line)
                    begun.set()

        listener = threading.Thread(target=listen)
        listener.start()
        assert begun.wait(10)
        gateway.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not answers(f"{gateway.url}/healthz"))
        assert "data: [DONE]" not in received
        httpx.post(f"{upstream.url}/open")
        listener.join(20)
        assert gateway.process.wait(20) == 0
    assert "data: [DONE]" in received
    assert sum('"content"' in line for line in received) == 100
    assert len(logged(tmp_path)) == 1


def test_after_the_drain_time_the_gateway_exits_whatever_is_in_flight(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url, drain_s=1) as gateway:
        request = ask("Never ends", "endless", stream=True)
        with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=request) as response:
            next(response.iter_lines())
            gateway.process.send_signal(signal.SIGTERM)
            assert gateway.process.wait(15) == 0


@pytest.mark.parametrize("json", [False, True])
def test_port_0_takes_a_free_port_and_prints_the_address(tmp_path: Path, json: bool) -> None:
    command = [sys.executable, "-m", "prebake", "--settings", str(write_settings(tmp_path)), "serve", "--port", "0"]
    command += ["--json"] if json else []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = orjson.loads(line)["address"] if json else line.removeprefix("serving on ").strip()
            assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}
        finally:
            process.terminate()
        assert process.wait(15) == 0


def test_a_port_in_use_is_one_line_and_exit_code_2(tmp_path: Path, upstream: Running) -> None:
    port = upstream.url.rpartition(":")[2]
    command = [sys.executable, "-m", "prebake", "--settings", str(write_settings(tmp_path)), "serve", "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_workers_share_port_snapshot_and_metrics_and_a_killed_one_is_replaced(
    tmp_path: Path, upstream: Running
) -> None:
    publish(tmp_path, [answer_to(settings_of(tmp_path), ask("Who?"), "All of us")])
    with gateway_server(tmp_path, upstream.url, workers=2) as gateway:
        wait_until(lambda: len(children(gateway)) == 2, 60)
        url = f"{gateway.url}/v1/chat/completions"
        wait_until(lambda: httpx.post(url, json=ask("Who?")).headers["x-prebake"] == "hit", 30)
        for _ in range(30):
            assert httpx.post(url, json=ask("Who?")).headers["x-prebake"] == "hit"
        wait_until(lambda: hits(gateway) == 31)  # the other worker's count comes a moment later
        killed = children(gateway)[0]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: len(set(children(gateway)) - {killed}) == 2, 60)
        assert httpx.post(url, json=ask("Who?")).headers["x-prebake"] == "hit"
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(30) == 0


@pytest.mark.slow
def test_a_worker_that_hangs_without_dying_is_replaced(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url, workers=2, hung_s=3) as gateway:
        wait_until(lambda: len(children(gateway)) == 2, 60)
        hanging = children(gateway)[0]
        os.kill(hanging, signal.SIGSTOP)
        wait_until(lambda: hanging not in children(gateway) and len(children(gateway)) == 2, 120)
        assert f"worker {hanging} hung and is replaced" in gateway.log.read_text()
        assert answers(f"{gateway.url}/healthz")


@pytest.mark.slow
def test_a_worker_that_hangs_holds_up_no_drain_for_ever(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url, workers=2, hung_s=3, drain_s=1) as gateway:
        wait_until(lambda: len(children(gateway)) == 2, 60)
        os.kill(children(gateway)[0], signal.SIGSTOP)
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(60) == 0


def children(gateway: Running) -> list[int]:
    """The worker processes: children that hold the listening socket's application, not multiprocessing's tracker."""
    pid = gateway.process.pid
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        command = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"spawn_main" in command:
            found.append(int(child))
    return found


def hits(gateway: Running) -> float:
    lines: list[Any] = httpx.get(f"{gateway.url}/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("prebake_requests_total{") and '"hit"' in line
    )
