"""Whatever a client sends, the gateway has no 5xx of its own and never gives an answer to another question."""

from __future__ import annotations

import json
import socket
import unicodedata
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prebake.request import DEFAULTS, DELIVERY_FIELDS
from tests.gateway_bed import Running, ask
from tests.integration.gateway.conftest import CAPITAL

OTHERS = ("max_tokens", "seed", "tool_choice", "functions", "model", "messages", "surprise")
FIELDS = [*DEFAULTS, *DELIVERY_FIELDS, *OTHERS]
MESSAGE = b'{"model":"tiny","messages":[{"role":"user","content":"x"}],'
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([1e308, -0.0, 1])
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3), max_leaves=8
)
hostile = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def send(client: httpx.Client, body: bytes) -> httpx.Response:
    response = client.post("/v1/chat/completions", content=body)
    assert response.status_code < 500, (body, response.text)
    return response


@pytest.fixture(scope="module")
def client(gateway: Running) -> httpx.Client:
    return httpx.Client(base_url=gateway.url, timeout=20)


@hostile
@given(body=st.binary(max_size=300))
@example(body=b"")
@example(body=b"\xff\xfe{}")
@example(body=b"null")
@example(body=b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}')
def test_bytes_that_are_no_request_are_the_upstreams_to_refuse(client: httpx.Client, body: bytes) -> None:
    assert send(client, body).headers["x-prebake"] == "bypass"


@hostile
@given(name=st.sampled_from(FIELDS), value=values)
@example(name="stream", value="yes")
@example(name="stream", value=1)
@example(name="seed", value=10**400)
@example(name="temperature", value=float("nan"))
@example(name="stream_options", value={"include_usage": True})
@example(name="tools", value=[[]])
@example(name="n", value=True)
def test_one_strange_field_is_never_answered_as_if_it_were_not_there(
    client: httpx.Client, name: str, value: Any
) -> None:
    request = {**ask(CAPITAL), name: value}
    response = send(client, json.dumps(request).encode())
    if response.headers["x-prebake"] == "hit":
        unchanged = value is None or name in DELIVERY_FIELDS or value == ask(CAPITAL).get(name, DEFAULTS.get(name))
        assert unchanged or (name, value) in [("tool_choice", "none"), ("stop", "")], request


@hostile
@given(text=st.text(max_size=60), where=st.integers(0, 40))
def test_one_more_letter_is_another_question(client: httpx.Client, text: str, where: int) -> None:
    changed = CAPITAL[:where] + text + CAPITAL[where:]
    response = send(client, orjson.dumps(ask(changed)) if is_unicode(changed) else b"")
    if response.headers["x-prebake"] == "hit":
        assert letters(changed) == letters(CAPITAL)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"model":"tiny","messages":' + b"[" * 900 + b"]" * 900 + b"}",
        MESSAGE + b'"logit_bias":' + b'{"a":' * 900 + b"1" + b"}" * 901,
        MESSAGE + b'"seed":' + b"9" * 5000 + b"}",
        MESSAGE + b'"temperature":NaN}',
        b'{"model":"tiny\\r\\nx-evil: 1","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"' + b"m" * 200_000 + b'","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"tiny","messages":[' + b"{}," * 10_000 + b"{}]}",
    ],
    ids=range(8),
)
def test_known_tricks_reach_the_upstream_or_are_refused(client: httpx.Client, body: bytes) -> None:
    response = send(client, body)
    assert response.headers["x-prebake"] != "hit"
    assert "x-evil" not in response.headers


def test_of_a_key_given_twice_the_last_counts_as_for_every_json_reader(client: httpx.Client) -> None:
    other = orjson.dumps(ask("Another question?")["messages"]).decode()
    first = orjson.dumps(ask(CAPITAL)["messages"]).decode()
    twice = f'{{"model":"tiny","messages":{first},"messages":{other}}}'.encode()
    assert send(client, twice).headers["x-prebake"] == "miss"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        POST + b"Content-Length: -5\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /v1/models\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/models?\xc3\xa9=%ff%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/%00%0d%0a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET http://other.example/v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"CONNECT other.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX-A: \xff\xfe\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Evil: a\r\n folded\r\nConnection: close\r\n\r\n",
    ],
    ids=range(14),
)
def test_broken_http_is_refused_or_passed_on_and_harms_nobody_else(gateway: Running, request_bytes: bytes) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=3) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        reply = b""
        while piece := connection.recv(65536):
            reply += piece
            if reply.startswith(b"HTTP/1.1 2"):
                break
    assert not reply.startswith(b"HTTP/1.1 5"), reply
    assert httpx.get(f"{gateway.url}/healthz").status_code == 200


def test_bodies_of_50_mb_leave_the_memory_flat(gateway: Running, client: httpx.Client) -> None:
    body = b'{"model":"tiny","messages":[{"role":"user","content":"' + b"x" * 50_000_000 + b'"}]}'
    send(client, body)
    before = resident_mb(gateway)
    for _ in range(4):
        assert send(client, body).headers["x-prebake-reason"] == "too_large"
    assert resident_mb(gateway) < before + 30


def resident_mb(gateway: Running) -> float:
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return next(int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmRSS"))


def is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)


def letters(text: str) -> list[str]:
    """What folding must keep: every letter and digit, in any case."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return [letter for letter in folded if letter.isalnum()]
