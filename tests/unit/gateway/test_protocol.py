"""A connection that answers at once: it is closed when it has been idle for long enough, and not before."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from gateway.chat import Hit
from gateway.doors import DOORS, Doors
from gateway.heads import Heads
from gateway.metrics import Metrics
from gateway.protocol import HEADS, HITS, GuardedProtocol
from prebake.settings import Settings

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
ANSWER = b"HTTP/1.1 200 OK\r\nx-number: 1\r\n\r\nbody"


async def no_app(_scope: Any, _receive: Any, _send: Any) -> None:
    raise AssertionError("a hit needs no application")


async def talk() -> float:
    """Two requests with a moment between them; how long the connection then stays open, in seconds."""
    config = uvicorn.Config(no_app, timeout_keep_alive=2, log_config=None, ws="none")
    config.load()
    state = {DOORS: Doors(Settings(), Metrics()), HITS: lambda *_: Hit(b"x-number: 1\r\n", b"body"), HEADS: Heads()}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: GuardedProtocol(config, ServerState(), state), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for pause_s in (0.3, 0):
            asked = loop.time()
            writer.write(REQUEST)
            assert await reader.readexactly(len(ANSWER)) == ANSWER
            await asyncio.sleep(pause_s)
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        return loop.time() - asked


def test_it_is_closed_after_the_keep_alive_time_which_each_answer_begins_anew() -> None:
    assert asyncio.run(talk()) >= 2
