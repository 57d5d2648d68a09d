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

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Counts requests; closes the connection without a word as often as told."""

    def __init__(self, *, silent_closes: int = 0) -> None:
        self.requests = 0
        self._silent_closes = silent_closes

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            self.requests += 1
            if b"POST" in head:
                await reader.readexactly(4)
            if self.requests <= self._silent_closes:
                break
            writer.write(ANSWER)
        writer.close()


@asynccontextmanager
async def upstream_at(server: Server) -> AsyncIterator[Upstream]:
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


async def forward(upstream: Upstream, method: str = "POST", body: bytes = b"body") -> tuple[Passed, list[Any]]:
    """Pass one request on; returns what came of it and the messages sent back."""
    scope = {"method": method, "path": "/v1/x", "raw_path": b"/v1/x", "query_string": b"", "headers": []}
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    return await upstream.forward(scope, receive, send, body=body, marks=[]), sent


def refuse_connections(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let that many connections fail before they are made, as those to a server that is being restarted."""
    connect = aiohttp.TCPConnector.connect
    left = iter(range(times))

    async def flaky(self: Any, request: Any, *rest: Any, **options: Any) -> Any:
        if next(left, None) is not None:
            raise aiohttp.ClientConnectorError(request.connection_key, ConnectionRefusedError(111, "refused"))
        return await connect(self, request, *rest, **options)

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", flaky)


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
