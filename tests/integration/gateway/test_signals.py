"""SIGHUP reads the settings again, SIGTERM drains; neither harms a request in flight, with one process or several."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from tests.gateway_bed import SETTINGS, Running, answer_to, ask, gateway_server, publish, settings_of, wait_until

KNOWN = ask("Known?")
KEY = "pbk-signal-test-0123456789"
LOCKED = f"[[keys]]\nname = 'app'\nsha256 = '{sha256(KEY.encode()).hexdigest()}'\n" + SETTINGS
OTHER_KEY = LOCKED.replace(sha256(KEY.encode()).hexdigest(), sha256(b"pbk-another").hexdigest())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    publish(folder, [answer_to(settings_of(folder), KNOWN, "Yes")])
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, upstream: Running) -> Iterator[Running]:
    with gateway_server(folder, upstream.url) as server:
        yield server


@pytest.fixture
def gateway(folder: Path, server: Running) -> Running:
    """The gateway with its first settings."""
    hang_up(server, folder, SETTINGS)
    wait_until(lambda: said(server) == "hit")
    return server


def hang_up(server: Running, folder: Path, settings: str) -> None:
    """Put other settings in the file, at once, and send SIGHUP."""
    (folder / "new.toml").write_text(settings)
    (folder / "new.toml").replace(folder / "prebake.toml")
    server.process.send_signal(signal.SIGHUP)


def said(server: Running, key: str = "") -> str:
    """What the gateway makes of a request whose answer is stored."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=KNOWN, headers=headers)
    return response.headers["x-prebake-reason"] if response.status_code == 401 else response.headers["x-prebake"]


def refusals(server: Running) -> list[str]:
    return re.findall(r"SIGHUP: .*the settings stay as they were", server.log.read_text())


@contextmanager
def long_answer(server: Running, upstream: Running, key: str = "") -> Iterator[list[str]]:
    """A stream that has begun when the block begins and goes on when it ends; all its lines afterwards."""
    received: list[str] = []
    begun = threading.Event()

    def listen() -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        body = ask("Long story", "held", stream=True)
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60) as got:
            for line in got.iter_lines():
                received.append(line)
                begun.set()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        assert begun.wait(30)
        yield received
        assert "data: [DONE]" not in received
    finally:
        httpx.post(f"{upstream.url}/open")
        listener.join(60)


def is_whole(received: list[str]) -> bool:
    return "data: [DONE]" in received and sum('"content"' in line for line in received) == 100


def takes_connections(server: Running) -> bool:
    host, port = server.url.removeprefix("http://").split(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except ConnectionRefusedError:
        return False


def test_sighup_puts_new_keys_in_force_and_takes_old_ones_away(gateway: Running, folder: Path) -> None:
    hang_up(gateway, folder, LOCKED)
    wait_until(lambda: said(gateway) == "no_key")
    assert said(gateway, KEY) == "hit"
    hang_up(gateway, folder, OTHER_KEY)
    wait_until(lambda: said(gateway, KEY) == "wrong_key")
    assert said(gateway, "pbk-another") == "hit"


def test_sighup_changes_routes(gateway: Running, folder: Path) -> None:
    hang_up(gateway, folder, SETTINGS.replace('name = "faq"', 'name = "faq"\nknowledge = "v2"'))
    wait_until(lambda: said(gateway) == "miss")


def test_a_request_in_flight_ends_as_it_began(gateway: Running, folder: Path, upstream: Running) -> None:
    with long_answer(gateway, upstream) as received:
        hang_up(gateway, folder, LOCKED)
        wait_until(lambda: said(gateway) == "no_key")
    assert is_whole(received)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("[[routes", "not valid TOML"),
        ("[gateway]\nupstreem = 'http://x/v1'", "Did you mean 'upstream'?"),
        (LOCKED + LOCKED.partition("[[routes]]")[0], "two keys have the name 'app'"),
        (SETTINGS + "[gateway]\nworkers = 3", "gateway.workers cannot change while the gateway runs"),
        (SETTINGS + "[gateway]\nport = 1\nhost = '::'", "gateway.port"),
        (SETTINGS + "[store]\nroot = 'elsewhere'", "[store] cannot change while the gateway runs"),
        (LOCKED + "[gateway]\nlog = false", "gateway.log cannot change"),
    ],
    ids=["toml", "misspelt", "twice", "workers", "address", "store", "log"],
)
def test_bad_settings_are_one_line_in_the_log_and_the_old_ones_stay(
    gateway: Running, folder: Path, settings: str, sentence: str
) -> None:
    before = len(refusals(gateway))
    hang_up(gateway, folder, settings)
    wait_until(lambda: len(refusals(gateway)) > before)
    assert len(refusals(gateway)) == before + 1
    assert sentence in refusals(gateway)[-1]
    assert said(gateway) == "hit"


def test_a_settings_file_that_is_gone_changes_nothing(gateway: Running, folder: Path) -> None:
    before = len(refusals(gateway))
    (folder / "prebake.toml").unlink()
    gateway.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(refusals(gateway)) > before)
    assert said(gateway) == "hit"


@pytest.mark.slow
def test_several_processes_reload_as_one_and_drain_as_one(tmp_path: Path, upstream: Running) -> None:
    publish(tmp_path, [answer_to(settings_of(tmp_path), KNOWN, "Yes")])
    with gateway_server(tmp_path, upstream.url, workers=2) as server:
        wait_until(lambda: all(said(server) == "hit" for _ in range(20)), 120)
        hang_up(server, tmp_path, "[[routes")
        wait_until(lambda: refusals(server))
        with long_answer(server, upstream) as first:
            hang_up(server, tmp_path, LOCKED)
            wait_until(lambda: all(said(server) == "no_key" for _ in range(20)), 60)
        assert is_whole(first)
        assert len(refusals(server)) == 1
        os.kill(worker_of(server), signal.SIGKILL)  # the one that comes for it knows the new settings
        wait_until(lambda: all(said(server, KEY) == "hit" and said(server) == "no_key" for _ in range(20)), 120)
        with long_answer(server, upstream, KEY) as last:
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not takes_connections(server), 60)
        assert server.process.wait(30) == 0
        assert is_whole(last)


def worker_of(server: Running) -> int:
    """One of the worker processes."""
    pid = server.process.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError("no worker")
