"""When a request is sent again: only where nothing of it was sent. The upstream's sockets are real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from gateway.metrics import Metrics
from gateway.upstream import Passed, Upstream
from prebake.settings import Gateway, Settings

ANSWER = b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Counts connections and requests; closes the connection without a word as often as told."""

    def __init__(self, *, silent_closes: int = 0, status: bytes = b"200 OK") -> None:
        self.connections = self.requests = 0
        self._silent_closes = silent_closes
        self._answer = ANSWER % status

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while head := await reader.readuntil(b"\r\n\r\n"):
            self.requests += 1
            if b"POST" in head:
                await reader.readexactly(4)
            if self.requests <= self._silent_closes:
                break
            writer.write(self._answer)
        writer.close()


@asynccontextmanager
async def upstream_at(
    server: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Upstream]:
    """An upstream client, started, whose server that is."""
    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    upstream = Upstream(Settings(gateway=Gateway(upstream=f"http://127.0.0.1:{port}/v1")), Metrics())
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.stop()
        listening.close()


async def forward(
    upstream: Upstream, method: str = "POST", body: bytes = b"body", more: int = 0
) -> tuple[Passed, list[Any]]:
    """Pass one request on, the body so many times more; returns what came of it and the messages sent back."""
    scope = {"method": method, "path": "/v1/x", "raw_path": b"/v1/x", "query_string": b"", "headers": []}
    sent: list[Any] = []
    left = iter(range(more - 1, -1, -1))

    async def receive() -> Any:
        if (after := next(left, None)) is not None:
            return {"type": "http.request", "body": body, "more_body": after > 0}
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    return await upstream.forward(scope, receive, send, body=body, more=more > 0, marks=[]), sent


def refuse_connections(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let that many connections fail before they are made, as those to a server that is being restarted."""
    connect = aiohttp.TCPConnector.connect
    left = iter(range(times))

    async def flaky(self: Any, request: Any, *rest: Any, **options: Any) -> Any:
        if next(left, None) is not None:
            raise aiohttp.ClientConnectorError(request.connection_key, ConnectionRefusedError(111, "refused"))
        return await connect(self, request, *rest, **options)

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", flaky)


def close_before_the_first_byte(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let that many connections be closed between being chosen and being written to."""
    connect = aiohttp.TCPConnector.connect
    left = iter(range(times))

    async def closing(self: Any, *arguments: Any, **options: Any) -> Any:
        connection = await connect(self, *arguments, **options)
        if next(left, None) is not None:
            assert connection.transport is not None
            connection.transport.close()
        return connection

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", closing)


@pytest.mark.parametrize(("times", "status", "requests"), [(0, 200, 1), (1, 200, 1), (2, 502, 0)])
def test_a_connection_that_could_not_be_made_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, times: int, status: int, requests: int
) -> None:
    refuse_connections(monkeypatch, times)

    async def story() -> None:
        server = Server()
        async with upstream_at(server) as upstream:
            passed, _ = await forward(upstream)
            assert (passed.status, server.requests) == (status, requests)

    within(story)


@pytest.mark.parametrize(("times", "status", "requests"), [(1, 200, 1), (2, 502, 0)])
def test_a_connection_that_closes_before_the_first_byte_is_replaced_once(
    monkeypatch: pytest.MonkeyPatch, times: int, status: int, requests: int
) -> None:
    close_before_the_first_byte(monkeypatch, times)

    async def story() -> None:
        server = Server()
        async with upstream_at(server) as upstream:
            passed, _ = await forward(upstream)
            assert (passed.status, server.requests) == (status, requests)

    within(story)


@pytest.mark.parametrize(
    ("status", "connections"), [(b"200 OK", 1), (b"429 Slow down", 1), (b"503 Busy", 1), (b"500 Oops", 2)]
)
def test_a_connection_is_kept_unless_the_server_failed_on_it(status: bytes, connections: int) -> None:
    """uvicorn closes a connection on which its application failed, and says nothing: the next would meet the close."""

    async def story() -> None:
        server = Server(status=status)
        async with upstream_at(server) as upstream:
            for _ in range(2):
                passed, _ = await forward(upstream)
                assert (passed.status, passed.complete) == (int(status[:3]), True)
            assert (server.connections, server.requests) == (connections, 2)

    within(story)


def test_an_answer_that_comes_before_the_body_is_read_arrives() -> None:
    """A server may refuse by the head alone and end its side, reading no more than it must (RFC 9112, 9.6)."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
        writer.write_eof()
        while await reader.read(65536):
            pass
        writer.close()

    async def story() -> None:
        async with upstream_at(refuse) as upstream:
            passed, sent = await forward(upstream, body=b"x" * 65536, more=500)
            assert (passed.status, passed.complete, sent[1]["body"]) == (413, True, b"no")

    within(story)


def test_a_chat_request_that_was_sent_is_never_sent_again() -> None:
    async def story() -> None:
        server = Server(silent_closes=1)
        async with upstream_at(server) as upstream:
            passed, sent = await forward(upstream)
            assert (passed.status, server.requests) == (502, 1)
            assert b"upstream_unreachable" in sent[-1]["body"]

    within(story)


def test_an_answer_of_known_length_ends_with_its_last_chunk() -> None:
    async def story() -> None:
        async with upstream_at(Server()) as upstream:
            passed, sent = await forward(upstream)
            assert passed.complete
            assert [(message["body"], message["more_body"]) for message in sent[1:]] == [(b"ok", False)]

    within(story)


def within(story: Callable[[], Awaitable[None]]) -> None:
    """Run it, for at most 20 seconds."""

    async def timed() -> None:
        async with asyncio.timeout(20):
            await story()

    asyncio.run(timed())
