"""A miss is as if the gateway were not there: what goes up and what comes back is unchanged, as it comes."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.gateway_bed import Running, ask, free_port, gateway_server, publish, upstream_server, wait_until

# Set by the server for each connection or each answer anew.
VOLATILE = {"date", "x-prebake", "x-prebake-reason", "connection"}


def last_seen(upstream: Running) -> dict[str, Any]:
    request: dict[str, Any] = httpx.get(f"{upstream.url}/seen").json()["requests"][-1]
    return request


def chat(server: Running, body: dict[str, Any], **options: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=20, **options)


def test_the_request_reaches_the_upstream_byte_for_byte(gateway: Running, upstream: Running) -> None:
    body = b'{ "messages":[{"role":"user","content":"\\u00e9\xc3\xa9"}],\n "model":"tiny", "x": 1.50 }'
    headers = {
        "authorization": "Bearer sk-secret",
        "content-type": "application/json; charset=utf-8",
        "accept-encoding": "br",
        "user-agent": "some/1",
        "openai-organization": "org",
        "x-name": "J\u00f6rg".encode("latin-1"),
        "connection": "keep-alive, x-hop",
        "x-hop": "for the gateway alone",
    }
    httpx.post(f"{gateway.url}/v1/chat/completions?api-version=2&x=%20y", content=body, headers=headers)
    seen = last_seen(upstream)
    assert seen["body"] == body.decode()
    assert seen["query"] == "api-version=2&x=%20y"
    received = dict(seen["headers"])
    assert received.pop("host") == upstream.url.removeprefix("http://")
    assert received.pop("x-name").encode("latin-1").decode() == "Jörg"
    assert received == {
        "authorization": "Bearer sk-secret",
        "content-type": "application/json; charset=utf-8",
        "accept-encoding": "br",
        "accept": "*/*",
        "user-agent": "some/1",
        "openai-organization": "org",
        "content-length": str(len(body)),
    }


@pytest.mark.parametrize("model", ["tiny", "busy", "broken"])
def test_status_headers_and_body_come_back_unchanged(gateway: Running, upstream: Running, model: str) -> None:
    through, direct = chat(gateway, ask("Hello?", model=model)), chat(upstream, ask("Hello?", model=model))
    assert (through.status_code, through.content) == (direct.status_code, direct.content)
    assert (through.headers["x-prebake"], through.headers["x-prebake-reason"]) == ("miss", "not_baked")
    assert {k: v for k, v in through.headers.items() if k not in VOLATILE} == {
        k: v for k, v in direct.headers.items() if k not in VOLATILE
    }


def test_the_client_raises_the_upstreams_own_errors(gateway: Running) -> None:
    with pytest.raises(openai.RateLimitError) as busy:
        gateway.client.chat.completions.create(**ask("Hello?", model="busy"))
    assert busy.value.response.headers["retry-after"] == "7"
    with pytest.raises(openai.BadRequestError, match="invalid body"):
        gateway.client.post("/chat/completions", body={"model": 7}, cast_to=object)


def test_a_stream_passes_through_while_the_upstream_is_still_writing(gateway: Running, upstream: Running) -> None:
    before = cancelled(upstream)
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=ask("Go", "endless", stream=True)) as response:
        first = next(response.iter_lines())
        assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
    # The upstream writes for minutes: the first line came before its end, and leaving ended it.
    wait_until(lambda: cancelled(upstream) == before + 1)


def test_a_client_that_leaves_before_the_answer_cancels_the_call(gateway: Running, upstream: Running) -> None:
    gone = disconnects(gateway)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gateway.url}/v1/chat/completions", json=ask("Hm", "silent"), timeout=0.5)
    wait_until(lambda: disconnects(gateway) == gone + 1)


def test_a_whole_stream_equals_the_upstreams(gateway: Running, upstream: Running) -> None:
    assert chat(gateway, ask("Hi", stream=True)).content == chat(upstream, ask("Hi", stream=True)).content


def test_an_upstream_that_dies_midway_is_seen_as_such_by_the_client(gateway: Running) -> None:
    received: list[str] = []
    with pytest.raises(httpx.RemoteProtocolError):
        keep_lines(gateway, ask("Hi", "dies", stream=True), received)
    assert sum(line.startswith("data: ") for line in received) == 3
    assert chat(gateway, ask("And now?")).status_code == 200


def test_other_paths_of_the_api_pass_through(gateway: Running, upstream: Running) -> None:
    assert [model.id for model in gateway.client.models.list()] == ["tiny"]
    vector = gateway.client.embeddings.create(model="tiny", input="x" * 100_000, encoding_format="float")
    assert vector.data[0].embedding == [0.5, 0.25]
    assert vector.usage.prompt_tokens > 100_000
    unknown = httpx.post(f"{gateway.url}/v1/still/to/be/invented", json={"input": "hello"})
    assert (unknown.status_code, unknown.headers["x-prebake"]) == (404, "bypass")
    assert unknown.text == httpx.post(f"{upstream.url}/v1/still/to/be/invented").text


def test_a_body_of_unknown_length_is_streamed_up(gateway: Running) -> None:
    chunks = (b"x" * 70_000 for _ in range(20))
    response = httpx.post(f"{gateway.url}/v1/embeddings", content=chunks)
    assert response.json()["usage"]["prompt_tokens"] == 1_400_000


@pytest.mark.parametrize("path", ["/v1/../seen", "/v1/%2e%2e/seen", "/v1/a/%2e%2E/../../seen", "/v1/..%2fseen"])
def test_no_path_leads_out_of_the_upstreams_address(gateway: Running, path: str) -> None:
    reply = raw_request(gateway, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert reply.startswith("HTTP/1.1 404"), reply
    assert "requests" not in reply


def test_paths_outside_the_api_are_not_the_upstreams(gateway: Running) -> None:
    response = httpx.get(f"{gateway.url}/seen")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_paths_outside_the_api_are_the_upstreams_where_the_settings_say_so(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url, pass_unknown=True) as server:
        passed = httpx.get(f"{server.url}/seen?x=1")
        assert passed.json().keys() == {"requests", "cancelled"}
        assert (passed.headers["x-prebake"], passed.headers["x-prebake-reason"]) == ("bypass", "not_chat")
        assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
        assert httpx.get(f"{server.url}/nowhere").text == httpx.get(f"{upstream.url}/nowhere").text
        assert raw_request(server, "GET /v1/../seen HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").startswith(
            "HTTP/1.1 404"
        )
        star = raw_request(server, "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert not star.startswith("HTTP/1.1 5")


def test_an_upstream_that_is_not_there_is_a_502_and_back_again_an_answer(tmp_path: Path) -> None:
    port = free_port()
    publish(tmp_path, [])
    with gateway_server(tmp_path, f"http://127.0.0.1:{port}") as server:
        with pytest.raises(openai.InternalServerError) as failure:
            server.client.chat.completions.create(**ask("Anybody?"))
        assert failure.value.status_code == 502
        assert failure.value.code == "upstream_unreachable"
        assert failure.value.response.headers["x-prebake"] == "miss"
        with upstream_server(tmp_path, port):
            assert server.client.chat.completions.create(**ask("Anybody?")).choices[0].message.content


def test_a_silent_upstream_is_a_504(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url, timeout_s=0.5) as server:
        with pytest.raises(openai.InternalServerError) as failure:
            server.client.chat.completions.create(**ask("Hm", model="silent"))
        assert (failure.value.status_code, failure.value.code) == (504, "upstream_timeout")


def test_a_request_too_long_to_look_at_goes_through_whole(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url, max_body_mb=0.1) as server:
        response = chat(server, ask("x" * 2_000_000))
        assert (response.status_code, response.headers["x-prebake-reason"]) == (200, "too_large")
    assert last_seen(upstream)["size"] > 2_000_000


def keep_lines(gateway: Running, request: dict[str, Any], received: list[str]) -> None:
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=request) as response:
        for line in response.iter_lines():
            received.append(line)  # noqa: PERF402 - what came before a break must be kept


def cancelled(upstream: Running) -> int:
    count: int = httpx.get(f"{upstream.url}/seen").json()["cancelled"]
    return count


def disconnects(gateway: Running) -> float:
    metrics = httpx.get(f"{gateway.url}/metrics").text
    return next(float(x.split()[1]) for x in metrics.splitlines() if x.startswith("prebake_client_disconnects_total"))


def raw_request(server: Running, request: str) -> str:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request.encode("latin-1"))
        reply = b""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and (piece := connection.recv(65536)):
            reply += piece
    return reply.decode("latin-1")
