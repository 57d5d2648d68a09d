"""A reader of the access log that is slow or gone costs lines, never a request."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import orjson
import pytest

from gateway import access_log
from gateway.access_log import AccessLog
from gateway.metrics import Metrics


class Slow(io.BytesIO):
    """An output whose reader takes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.full, self.taken = threading.Event(), threading.Event()

    def write(self, data: Any) -> int:
        self.full.set()
        self.taken.wait(10)
        return super().write(data)


class Gone(io.BytesIO):
    """An output whose reader has gone."""

    def write(self, data: Any) -> int:  # noqa: ARG002 - io.BytesIO names it
        raise BrokenPipeError


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-prebake", b"hit")]})
        await send({"type": "http.response.body", "body": b"four"})


async def request(log: AccessLog, path: str) -> None:
    async def send(message: Any) -> None:
        """Take it."""

    await log({"type": "http", "method": "GET", "path": path}, None, send)  # type: ignore[arg-type]


async def end(log: AccessLog) -> None:
    await log({"type": "lifespan"}, None, None)  # type: ignore[arg-type]


def dropped(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("prebake_access_log_dropped_total") or 0


def test_lines_that_a_slow_reader_leaves_no_room_for_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "QUEUE_LINES", 3)
    metrics, out = Metrics(), Slow()

    async def serve() -> None:
        log = AccessLog(app, metrics, out)
        await request(log, "/first")
        await asyncio.to_thread(out.full.wait, 10)
        for number in range(10):
            await request(log, f"/{number}")
        assert dropped(metrics) == 7
        out.taken.set()
        await end(log)

    asyncio.run(serve())
    lines = [orjson.loads(line) for line in out.getvalue().splitlines()]
    assert [line["path"] for line in lines] == ["/first", "/0", "/1", "/2"]
    assert {(line["status"], line["bytes"], line["cache"]) for line in lines} == {(200, 4, "hit")}


def test_a_reader_that_is_gone_is_counted_too() -> None:
    metrics = Metrics()

    async def serve() -> None:
        log = AccessLog(app, metrics, Gone())
        await request(log, "/")
        await end(log)

    asyncio.run(serve())
    assert dropped(metrics) == 1
