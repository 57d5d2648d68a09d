"""Identical requests in flight at the same time go to a real upstream once, where the route allows it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_bed import Running, ask, gateway_server, logged, upstream_server, wait_until

SETTINGS = """
[[routes]]
name = "together"
scope = "shared"
models = ["gated", "gated-busy", "endless", "dies", "held"]
coalesce = true

[[routes]]
name = "each"
models = ["gated-alone"]
scope = "shared"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model server of these tests' own, so that its counts are theirs."""
    with upstream_server(tmp_path_factory.mktemp("model")) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gateway has its store."""
    return tmp_path_factory.mktemp("coalescing")


@pytest.fixture(scope="module")
def gateway(folder: Path, model: Running) -> Iterator[Running]:
    """A gateway whose first route coalesces, behind a proxy that names tenants."""
    with gateway_server(folder, model.url, settings=SETTINGS, tenant_header="x-tenant") as server:
        yield server


def asked(model: Running, text: str) -> int:
    """How many requests with that text reached the model."""
    return sum(text in request["body"] for request in httpx.get(f"{model.url}/seen").json()["requests"])


def coalesced(gateway: Running) -> int:
    lines = httpx.get(f"{gateway.url}/metrics").text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if 'reason="coalesced"' in line and "_total" in line)


def post(gateway: Running, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=30)


def at_once(
    pool: ThreadPoolExecutor, gateway: Running, model: Running, *asking: dict[str, Any], calls: int
) -> list[httpx.Response]:
    """Send them all before the first is answered, then let the model go on; ``calls`` must reach it."""
    text, before = asking[0]["body"]["messages"][0]["content"], coalesced(gateway)
    sent: list[Future[httpx.Response]] = [
        pool.submit(post, gateway, one["body"], **one.get("headers", {})) for one in asking
    ]
    wait_until(lambda: coalesced(gateway) == before + len(asking) - calls and asked(model, text) == calls, 30)
    httpx.post(f"{model.url}/open")
    return [one.result(30) for one in sent]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """As many callers as a test has."""
    with ThreadPoolExecutor(20) as threads:
        yield threads


@pytest.mark.parametrize("stream", [False, True])
def test_twenty_identical_requests_are_one_call(
    pool: ThreadPoolExecutor, gateway: Running, model: Running, folder: Path, stream: bool
) -> None:
    text = f"Twenty at once, stream {stream}"
    many = [{"body": ask(text, "gated", stream=stream, user=f"user-{number}")} for number in range(20)]
    answers = at_once(pool, gateway, model, *many, calls=1)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert b"one" in answers[0].content
    reasons = sorted(answer.headers["x-prebake-reason"] for answer in answers)
    assert reasons == ["coalesced"] * 19 + ["no_snapshot"]
    assert {answer.headers["x-prebake"] for answer in answers} == {"miss"}

    def users() -> list[int]:
        return [row["user_hash"] for row in logged(folder) if text in row["body"]]

    wait_until(lambda: len(users()) == 20, 30)
    assert len(set(users())) == 20


def test_streamed_and_whole_requests_are_two_calls(pool: ThreadPoolExecutor, gateway: Running, model: Running) -> None:
    text = "Streamed and whole"
    both = [{"body": ask(text, "gated", stream=stream)} for stream in (True, True, False, False)]
    answers = at_once(pool, gateway, model, *both, calls=2)
    assert [answer.headers["content-type"].split(";")[0] for answer in answers] == [
        "text/event-stream", "text/event-stream", "application/json", "application/json"
    ]  # fmt: skip


def test_tenants_and_credentials_never_share_a_call(pool: ThreadPoolExecutor, gateway: Running, model: Running) -> None:
    body = ask("Whose is it?", "gated")
    asking = [
        {"body": body, "headers": {"x-tenant": tenant, "authorization": f"Bearer {key}"}}
        for tenant, key in [("a", "1"), ("b", "1"), ("a", "2")]
    ]
    answers = at_once(pool, gateway, model, *asking, calls=3)
    assert {answer.headers["x-prebake-reason"] for answer in answers} == {"no_snapshot"}


def test_a_route_coalesces_only_when_its_owner_says_so(
    pool: ThreadPoolExecutor, gateway: Running, model: Running
) -> None:
    at_once(pool, gateway, model, *[{"body": ask("Each alone", "gated-alone")}] * 3, calls=3)


@pytest.mark.parametrize("alone", [{"cache-control": "no-store"}, {"cache-control": "no-cache"}])
def test_who_wants_an_answer_of_their_own_gets_it(
    pool: ThreadPoolExecutor, gateway: Running, model: Running, alone: dict[str, str]
) -> None:
    body = ask(f"My own, {alone}", "gated")
    text_twice = [{"body": body, "headers": alone}, {"body": body, "headers": alone}]
    at_once(pool, gateway, model, *text_twice, calls=2)


def test_the_upstreams_error_reaches_all(pool: ThreadPoolExecutor, gateway: Running, model: Running) -> None:
    answers = at_once(pool, gateway, model, *[{"body": ask("Too busy?", "gated-busy")}] * 3, calls=1)
    assert [(answer.status_code, answer.headers["retry-after"]) for answer in answers] == [(429, "7")] * 3
    assert {answer.json()["error"]["message"] for answer in answers} == {"slow down"}


def test_a_break_midway_reaches_all_and_the_next_request_is_a_new_call(
    pool: ThreadPoolExecutor, gateway: Running, model: Running
) -> None:
    def broken(_: int) -> bool:
        try:
            post(gateway, ask("Breaks", "dies", stream=True))
        except httpx.RemoteProtocolError:
            return True
        return False

    assert list(pool.map(broken, range(5))) == [True] * 5
    assert broken(6)


def test_one_who_leaves_midway_harms_nobody_and_the_last_one_ends_the_call(gateway: Running, model: Running) -> None:
    def cancelled() -> int:
        count: int = httpx.get(f"{model.url}/seen").json()["cancelled"]
        return count

    before, body, url = cancelled(), ask("No end", "endless", stream=True), f"{gateway.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=20) as staying:
        lines = staying.iter_lines()
        first = next(lines)
        with httpx.stream("POST", url, json=body, timeout=20) as leaving:
            assert leaving.headers["x-prebake-reason"] == "coalesced"
            assert next(leaving.iter_lines()) == first
        for _ in range(20):
            assert next(lines) is not None
        assert cancelled() == before
    wait_until(lambda: cancelled() == before + 1)
    assert asked(model, "No end") == 1
