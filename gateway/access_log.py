"""The access log: one JSON line per request on standard output, for whatever collects a container's logs.

In: any ASGI application. Out: the same, with a line written for each of its responses by a thread of its own, so that a
reader who is slow stops no request. No bodies, no header values of clients, no queries, no keys, no people.
"""

from __future__ import annotations

import sys
import threading
import time
from datetime import UTC, datetime
from queue import Empty, Full, Queue
from time import perf_counter
from typing import IO, Any

import orjson
from starlette.types import ASGIApp

from gateway.metrics import Metrics
from gateway.upstream import Message, Receive, Scope, Send

QUEUE_LINES = 10_000
STOP_S = 2.0
# What the gateway itself says of a response, by the header that says it.
_MARKS = {
    b"x-prebake": "cache",
    b"x-prebake-reason": "reason",
    b"x-prebake-run": "run_id",
    b"x-prebake-snapshot": "snapshot",
}


class AccessLog:
    """Wraps the application. Lines that find the queue full are dropped and counted."""

    def __init__(self, app: ASGIApp, metrics: Metrics, out: IO[bytes] | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._out = sys.stdout.buffer if out is None else out
        self._lines: Queue[dict[str, Any] | None] = Queue(QUEUE_LINES)
        self._thread = threading.Thread(target=self._run, name="prebake-access-log", daemon=True)
        self._thread.start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request and note it; the lifespan's end writes out what is noted."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            self._close()
            return
        noted: dict[str, Any] = {"time": "", "method": scope["method"], "path": scope["path"], "status": 0}
        size, arrived, started = 0, time.time(), perf_counter()

        async def noting(message: Message) -> None:
            nonlocal size
            if message["type"] == "http.response.start":
                noted["status"] = message["status"]
                for name, value in message.get("headers", ()):
                    if (mark := _MARKS.get(name)) and value:
                        noted[mark] = value.decode("latin-1")
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            noted["time"] = datetime.fromtimestamp(arrived, UTC).isoformat(timespec="milliseconds")
            noted["seconds"] = round(perf_counter() - started, 6)
            noted["bytes"] = size
            self._add(noted)

    def _add(self, noted: dict[str, Any]) -> None:
        try:
            self._lines.put_nowait(noted)
        except Full:
            self._metrics.access_log_dropped.inc()

    def _close(self) -> None:
        try:
            self._lines.put(None, timeout=STOP_S)
        except Full:
            return  # nobody reads the output; a process that must end does not wait for a reader
        self._thread.join(STOP_S)

    def _run(self) -> None:
        stopped = False
        while not stopped:
            lines = [self._lines.get()]
            while len(lines) < QUEUE_LINES:
                try:
                    lines.append(self._lines.get_nowait())
                except Empty:
                    break
            stopped = None in lines
            text = b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines if line is not None)
            try:
                self._out.write(text)
                self._out.flush()
            except (OSError, ValueError):  # the reader is gone; requests go on
                self._metrics.access_log_dropped.inc(len(lines) - stopped)
