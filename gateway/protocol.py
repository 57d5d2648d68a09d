"""One connection, with an end to patience and size: uvicorn's own protocol has neither.

In: bytes. Out: hits, answered at once; a refusal in the request's scope where its announced length is too much, a
closed connection where the client is too slow or goes on without end. A request that arrives in one piece, as nearly
all do, costs nothing more; one whose head is known is not even parsed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.chat import CHAT_PATH, Hit
from gateway.doors import DOORS, REFUSAL, Doors, Refused
from gateway.heads import Heads

HITS = "hits"  # where connections find in the state of the lifespan what answers hits at once, or None
HEADS = "heads"  # ... and the heads that are known
CHAT_URL = CHAT_PATH.encode()
MIN_BYTES_PER_S = 1000
# A piece no longer than this holds no headers that are too long: the least that the settings allow.
SHORT = 4000


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's connection; the limits are looked up when they are needed, so that a reload changes them at once."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._doors: Doors = app_state[DOORS]
        self._hit: Callable[[Any, bytes], Hit | None] | None = app_state[HITS]
        self._heads: Heads = app_state[HEADS]
        self._piece = b""  # what is taken now, if it has all of its requests from their beginning and is short
        self._looked_up: dict[str, Any] | None = None  # what the scope of a request says that is no hit
        self._waiting: list[bytes] | None = None  # what came of a body that may be answered at once
        self._arriving = False  # a request has begun and is not complete
        self._in_head = True  # its headers are not complete, or nothing has come yet
        self._size = 0  # bytes of it so far
        self._recent = 0  # ... and since the watch began
        self._held = False  # since then we kept the client from sending
        self._answered_at = 0.0  # when a request was last answered at once
        self._idle: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, not for ever."""
        super().connection_made(transport)
        self._watch_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clocks."""
        self._stop_watch()
        self._stop_unread()
        if self._idle is not None:
            self._idle.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a piece; look at the request if it is not complete with it or may be too long."""
        self._piece = data if not self._arriving and len(data) <= SHORT else b""
        if self._piece and self._answer_unparsed(data):
            return
        super().data_received(data)
        if self._waiting is not None and not self.transport.is_closing():
            self._go_the_ordinary_way(self._waiting)
        if self._arriving or len(data) > SHORT:
            self._look(len(data))

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._arriving = self._in_head = True
        self._size = 0

    def on_headers_complete(self) -> None:
        """The request is handed over; trailers that come later do not get into its headers (RFC 9110, 6.5.1)."""
        if self._looked_up is not None:
            self.scope.update(self._looked_up)  # type: ignore[typeddict-item]
            self._looked_up = None
            super().on_headers_complete()
        elif self._may_be_answered_at_once():
            self._waiting = []
        else:
            super().on_headers_complete()
        self._in_head = False
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._waiting is None:
            super().on_body(body)
        else:
            self._waiting.append(body)

    def on_message_complete(self) -> None:
        """The request is complete: a hit is answered here and now, without a task of its own."""
        parts = self._waiting
        if parts is None:
            super().on_message_complete()
        elif self._answer(self.scope, body := b"".join(parts)):
            self._waiting = None
            self._heads.remember(self._piece, list(self.scope["headers"]), body)
        else:
            self._go_the_ordinary_way(parts)
            super().on_message_complete()
        self._arriving = False
        if self._watch is not None:
            self._stop_watch()

    def pause_writing(self) -> None:
        """The client does not take what we send: it has a while to do so."""
        super().pause_writing()
        self._unread = self.loop.call_later(self._doors.limits.slow_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client takes its answer again."""
        self._stop_unread()
        super().resume_writing()

    def _may_be_answered_at_once(self) -> bool:
        """Whether nothing stands before the request, and nothing about it or its connection is out of the ordinary."""
        return (
            bool(self._piece)
            and self.url == CHAT_URL
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
            and not self.expect_100_continue
            and self._is_free()
        )

    def _is_free(self) -> bool:
        """Whether an answer can be written now."""
        return (
            self._hit is not None
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _answer_unparsed(self, piece: bytes) -> bool:
        """Answer a hit whose head came before: only such requests are remembered as may be answered at once."""
        head = self._heads.find(piece)
        if head is None or not self._is_free():
            return False
        scope = {"headers": head.headers}
        if not self._answer(scope, piece[head.body_start :]):
            self._looked_up = {name: value for name, value in scope.items() if name != "headers"}
            return False
        self._unset_keepalive_if_required()
        self._in_head = False
        if self._watch is not None:
            self._stop_watch()
        return True

    def _answer(self, scope: Any, body: bytes) -> bool:
        hit = self._hit(scope, body) if self._hit is not None else None
        if hit is None:
            return False
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[200], hit.lines, hit.body))
        self.server_state.total_requests += 1
        self._answered_at = self.loop.time()
        if self._idle is None:
            self._idle = self.loop.call_later(self.timeout_keep_alive, self._end_idle)
        return True

    def _end_idle(self) -> None:
        """Close what is idle for long enough. One clock runs on over many answers: one for each would cost too much."""
        self._idle = None
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._arriving or answering or self.timeout_keep_alive_task is not None:
            return  # another clock runs now, or will with the end of the answer
        left_s = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._idle = self.loop.call_later(left_s, self._end_idle)
        else:
            self.timeout_keep_alive_handler()

    def _go_the_ordinary_way(self, parts: list[bytes]) -> None:
        """Hand the request over to the application, with what came of its body."""
        self._waiting = None
        super().on_headers_complete()
        for part in parts:
            super().on_body(part)

    def _look(self, piece: int) -> None:
        if self.transport.is_closing():
            return
        limits = self._doors.limits
        first = self._size == 0
        self._size += piece
        self._recent += piece
        if self._in_head:
            if self._size > limits.header_kb * 1000:
                return self._break_off(Refused.HEADERS)
        elif REFUSAL not in self.scope:
            self._judge_head()
            if self._arriving:
                self._watch_again()
        elif self._size > limits.request_mb * 1e6 or len(self.headers) > limits.headers:
            return self._break_off(Refused.TOO_LARGE)
        if self._arriving:
            self._held = self._held or self.flow.read_paused
            if first and self._watch is None:
                self._watch_again()
        return None

    def _judge_head(self) -> None:
        """Leave in the scope, before the application runs, what it must refuse; None where all is well."""
        limits, headers = self._doors.limits, self.scope["headers"]
        size = len(self.url) + sum(len(name) + len(value) + len(": \r\n") for name, value in headers)
        announced = next((value for name, value in headers if name == b"content-length"), b"0")
        refusal = None
        if size > limits.header_kb * 1000:
            refusal = self._doors.refuse(Refused.HEADERS)
        elif int(announced) > limits.request_mb * 1e6:
            refusal = self._doors.refuse(Refused.TOO_LARGE)
        cast(dict[str, Any], self.scope)[REFUSAL] = refusal

    def _watch_again(self) -> None:
        self._stop_watch()
        self._recent, self._held = 0, False
        self._watch = self.loop.call_later(self._doors.limits.slow_s, self._time_is_up)

    def _time_is_up(self) -> None:
        self._watch = None
        if self._in_head:
            return self._break_off(Refused.SLOW) if self._arriving else self.transport.close()
        # While we hold the client back, or owe it the word to go on, it is not the slow one.
        held = self._held or self.flow.read_paused or self.cycle.waiting_for_100_continue
        if not held and self._recent < MIN_BYTES_PER_S * self._doors.limits.slow_s:
            return self._break_off(Refused.SLOW)
        return self._watch_again()

    def _break_off(self, reason: Refused) -> None:
        """Say no where nothing has been said on this connection yet, and close it."""
        refusal = self._doors.refuse(reason)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._in_head or cycle.response_started or self.pipeline:
                return self.transport.abort()
            cycle.disconnected = True
            cycle.message_event.set()
        elif not self._in_head:
            return self.transport.abort()
        headers = [*refusal.headers, (b"content-type", b"application/json"), (b"connection", b"close")]
        headers.append((b"content-length", b"%d" % len(refusal.body)))
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[refusal.status] + lines + b"\r\n" + refusal.body)
        return self.transport.close()

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
