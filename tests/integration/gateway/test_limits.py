"""A client can take only so much: bytes, headers, time; and it can send the gateway nowhere but to its upstream."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import orjson
import psutil
import pytest

from tests.gateway_bed import Running, answer_to, ask, gateway_server, publish, settings_of, wait_until

LIMITS = '{"request_mb": 0.5, "headers": 20, "header_kb": 8, "slow_s": 1}'
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
EMBED = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"
KNOWN = ask("Known?")
MINE = ask("Mine?", model="mine")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, upstream: Running) -> Iterator[Running]:
    """A gateway with small limits."""
    folder = tmp_path_factory.mktemp("narrow")
    settings = settings_of(folder)
    publish(folder, [answer_to(settings, KNOWN, "Yes. " * 100_000), answer_to(settings, MINE, "Secret", tenant="a")])
    with gateway_server(folder, upstream.url, limits=LIMITS, log=False, tenant_header="x-tenant") as server:
        yield server


@contextmanager
def connected(server: Running) -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    """All that comes until the gateway closes; an unkind close is a close too."""
    reply = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            reply += piece
    return reply


def clients(server: Running) -> set[int]:
    """The ports of all clients that the gateway has a connection with."""
    return {peer.raddr.port for peer in psutil.Process(server.process.pid).net_connections("tcp") if peer.raddr}


def still_serves(server: Running) -> bool:
    return httpx.post(f"{server.url}/v1/chat/completions", json=KNOWN).headers["x-prebake"] == "hit"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/files"])
def test_a_request_that_announces_too_much_is_refused_before_it_comes(narrow: Running, path: str) -> None:
    with connected(narrow) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n".encode() + b"{")
        reply = b""
        while b'"code":"request_too_large"' not in reply:  # head and body may come one after the other
            piece = connection.recv(65536)
            assert piece, reply
            reply += piece
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b"x-prebake: refused" in reply
    assert still_serves(narrow)


def test_the_real_client_gets_the_refusal_of_a_long_request(narrow: Running) -> None:
    refused = httpx.post(f"{narrow.url}/v1/chat/completions", json=ask("too long " * 100_000))
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("head", [POST, EMBED])
def test_a_request_of_unknown_length_is_cut_where_it_is_too_much(narrow: Running, head: bytes) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with connected(narrow) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):
            connection.sendall(chunk * 500)
    assert still_serves(narrow)


def test_a_request_just_within_the_limit_goes_through(narrow: Running) -> None:
    assert httpx.post(f"{narrow.url}/v1/embeddings", content=b"x" * 490_000).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        b"X-Many: 1\r\n" * 30,
        b"X-Long: " + b"y" * 10_000 + b"\r\n",
        b"Cookie: " + b"y" * 1_000_000 + b"\r\n",
        b"X-More: " + b"y" * 500 + b"\r\n",
    ],
    ids=["many", "long", "huge", "fine"],
)
def test_too_many_and_too_long_headers_are_refused(
    narrow: Running, headers: bytes, request: pytest.FixtureRequest
) -> None:
    with connected(narrow) as connection:
        with suppress(ConnectionError):
            connection.sendall(POST + headers + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")
        reply = read_to_end(connection)
    if request.node.callspec.id == "fine":
        assert reply.startswith(b"HTTP/1.1 400 ")  # the upstream's own word
    else:
        assert reply.startswith(b"HTTP/1.1 431 ")
        assert b'"code":"headers_too_large"' in reply
    assert still_serves(narrow)


@pytest.mark.parametrize(
    ("head", "trailer", "outcome"),
    [(b"X-Tenant: a\r\n", b"", b"x-prebake: hit"), (b"", b"X-Tenant: a\r\n", b"x-prebake-reason: no_tenant")],
    ids=["header", "trailer"],
)
def test_trailers_do_not_become_headers(narrow: Running, head: bytes, trailer: bytes, outcome: bytes) -> None:
    body = orjson.dumps(MINE)
    chunked = b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(body), body)
    with connected(narrow) as connection:
        connection.sendall(POST + head + chunked)
        connection.sendall(trailer + b"\r\n")
        assert outcome in read_to_end(connection)


def test_headers_that_do_not_end_in_time_end_the_connection(narrow: Running) -> None:
    with connected(narrow) as connection:
        connection.sendall(POST)
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.2):
                try:
                    connection.sendall(b"X-More: 1\r\n")
                except OSError:
                    return

        trickling = threading.Thread(target=trickle)
        trickling.start()
        try:
            assert read_to_end(connection).startswith(b"HTTP/1.1 408 ")
        finally:
            stop.set()
            trickling.join()


@pytest.mark.parametrize("head", [POST, EMBED])
@pytest.mark.parametrize("length", [b"Content-Length: 5000", b"Transfer-Encoding: chunked"])
def test_a_body_that_does_not_go_on_ends_the_connection(narrow: Running, head: bytes, length: bytes) -> None:
    with connected(narrow) as connection:
        connection.sendall(head + length + b"\r\n\r\n" + (b"3\r\nabc\r\n" if length.startswith(b"T") else b"abc"))
        reply = read_to_end(connection)
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in reply
    assert b"connection: close" in reply


def test_a_client_that_says_nothing_is_let_go(narrow: Running) -> None:
    with connected(narrow) as connection:
        assert read_to_end(connection) == b""


def test_a_slow_but_steady_body_and_a_quiet_kept_connection_are_not_slow_clients(narrow: Running) -> None:
    with connected(narrow) as connection:
        connection.sendall(EMBED + b"Content-Length: 20000\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"x" * 1000)
            time.sleep(0.1)  # slower than a limit of one second, faster than 1 kB/s
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        time.sleep(1.5)  # between two requests a client may take its time
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_does_not_take_its_answer_is_left(narrow: Running) -> None:
    with connected(narrow) as connection:
        body = orjson.dumps(KNOWN)
        request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
        connection.sendall(request * 50)  # more answers than all buffers on the way hold
        assert connection.recv(1) == b"H"
        assert connection.getsockname()[1] in clients(narrow)
        wait_until(lambda: connection.getsockname()[1] not in clients(narrow), 20)
    assert still_serves(narrow)


@pytest.mark.parametrize(
    "target",
    [
        "http://{other}/v1/models",
        "http://user@{other}/v1/models",
        "//{other}/v1/models",
        "/v1//{other}/v1/models",
        "/v1/@{other}/models",
        "/v1/http://{other}/models",
        "/v1/models?url=http://{other}/",
        "/v1/models#@{other}",
        "/v1/..//{other}/",
        "/v1/%2f%2f{other}/",
        "/v1\\@{other}/",
    ],
)
def test_no_target_and_no_host_leads_anywhere_but_to_the_upstream(narrow: Running, target: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.2)
        other = f"127.0.0.1:{elsewhere.getsockname()[1]}"
        with connected(narrow) as connection:
            lines = (
                f"GET {target} HTTP/1.1\r\nHost: {other}\r\nX-Forwarded-Host: {other}\r\nForwarded: host={other}\r\n"
            )
            connection.sendall((lines + "Connection: close\r\n\r\n").format(other=other).encode())
            reply = read_to_end(connection)
        assert reply.split(b" ")[1] in (b"200", b"400", b"404"), reply
        with pytest.raises(TimeoutError):
            elsewhere.accept()


def test_refusals_are_counted(narrow: Running) -> None:
    httpx.post(f"{narrow.url}/v1/files", content=b"x" * 600_000)
    assert 'prebake_refused_total{reason="too_large"}' in httpx.get(f"{narrow.url}/metrics").text
