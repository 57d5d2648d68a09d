"""The gateway benchmark's parts run small: what is asked are hits and misses as they should be, not how fast."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import gateway
from benchmarks._front import CHATS, HEADERS, QUESTIONS, asked, nginx, upstream
from benchmarks._front import gateway as our_gateway
from benchmarks._rivals import UnavailableError, debian
from benchmarks._wrk import _read, load, script
from tests.gateway_bed import wait_until

PRINTED = """
  Latency Distribution
     50%    1.93ms
     99%    {p99}
  30000 requests in 3.00s, 20.00MB read
{troubles}Requests/sec:  10000.50
"""


def test_hits_misses_and_the_same_bytes_from_nginx(tmp_path: Path) -> None:
    with upstream(tmp_path) as model, our_gateway(tmp_path, model.url) as ours:
        assert asked(model) == 0  # all questions were hits
        overhead = gateway._miss_overhead(ours.server, model, 5)
        assert asked(model) == 10  # five straight, five through the gateway
        assert overhead["ours"] > 0
        wait_until(lambda: gateway._hits(ours.server) >= QUESTIONS)  # a worker tells the other four times a second
        hits = gateway._hits(ours.server)
        assert hits >= QUESTIONS
        if shutil.which("wrk") is None or shutil.which("nginx", path="/usr/sbin:/usr/bin") is None:
            pytest.skip("no wrk or nginx here: apt-get install wrk nginx")
        with nginx(tmp_path, ours) as theirs:
            for front in (ours, theirs):
                found = load(front.server.url, script(tmp_path / "load.lua", front.requests, HEADERS), 1)
                assert found.failed == 0
                assert found.per_s > 0
        assert gateway._hits(ours.server) > hits
        assert asked(model) == 10


def test_the_script_for_wrk_holds_each_request_whole(tmp_path: Path) -> None:
    lua = script(tmp_path / "load.lua", CHATS, HEADERS).read_text()
    for request in CHATS:
        assert request.body.decode() in lua
    assert lua.count("Bearer") == QUESTIONS


@pytest.mark.parametrize(("p99", "milliseconds"), [("870.00us", 0.87), ("4.20ms", 4.2), ("1.50s", 1500)])
def test_wrk_is_read_in_every_unit(p99: str, milliseconds: float) -> None:
    found = _read(PRINTED.format(p99=p99, troubles=""))
    assert (found.per_s, found.failed) == (10000.5, 0)
    assert found.p99_ms == pytest.approx(milliseconds)


def test_every_failure_that_wrk_saw_is_counted() -> None:
    troubles = "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"
    assert _read(PRINTED.format(p99="1.00ms", troubles=troubles)).failed == 15


def test_wrk_that_did_not_run_is_an_error() -> None:
    with pytest.raises(AssertionError, match="unable to connect"):
        _read("unable to connect to 127.0.0.1:1 Connection refused")


def test_a_program_that_cannot_be_had_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda *_args, **_options: None)
    with pytest.raises(UnavailableError, match=r"^wrk is not there: .*apt-get install wrk`$"):
        debian.__wrapped__("wrk")
