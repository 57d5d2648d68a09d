"""Coalescing: identical requests in flight at the same time go to the upstream once, and each gets the whole answer.

In: a request of a route that allows it. Out: the upstream's answer, to each from its first byte and at its own pace.
Identical means: the same tenant, the same headers to the upstream (so the same credentials) but for those that describe
the connection, the trace or the person, and the same body, byte for byte, but for the fields that name people. What is
unknown keeps requests apart: it can cost a call, never give one caller what was meant for another.

Memory: at most MOST_BYTES of an answer. What is longer can no longer be joined, and is read at the pace of its slowest
caller; one who takes nothing for STALL_S while others wait is cut off. The upstream's call ends with its last caller.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from hashlib import sha256
from typing import Any

import orjson

from gateway.request_log import PEOPLE_FIELDS, without_people
from gateway.upstream import Headers, Message, Onward, Passed, Receive, Scope, Send

MOST_BYTES = 2**20
STALL_S = 30.0
# They say who asks over which connection, not what: requests that differ in these alone are the same.
APART = frozenset(
    {
        "baggage", "content-length", "forwarded", "traceparent", "tracestate", "user-agent", "via", "x-amzn-trace-id",
        "x-client-request-id", "x-correlation-id", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port",
        "x-forwarded-proto", "x-real-ip", "x-request-id",
    }
)  # fmt: skip
# What OpenAI's own clients tell of themselves: language, version, retries.
APART_PREFIX = "x-stainless-"


class Coalescing:
    """The calls that can be joined now. Used on one event loop."""

    def __init__(self, upstream: Onward, user_header: str = "") -> None:
        """``user_header`` names the person who asks, as in the settings."""
        self._upstream = upstream
        self._apart = APART | {user_header.lower()}
        self._calls: dict[bytes, _Call] = {}

    def board(self, scope: Scope, body: bytes, parsed: Any, tenant: str | None) -> Ride:
        """Join the identical call that is on its way, or begin one. The ride must be taken.

        ``parsed`` is the body as JSON: an object that may be looked up.
        """
        key = self._key(scope, body, parsed, tenant)
        call = self._calls.get(key)
        joined = call is not None and call.joinable
        if call is None or not call.joinable:
            call = self._calls[key] = _Call()
            call.task = asyncio.create_task(self._run(key, call, scope, body))
        return Ride(call, joined)

    async def _run(self, key: bytes, call: _Call, scope: Scope, body: bytes) -> None:
        try:
            call.passed = await self._upstream.forward(scope, call.receive, call.send, body=body, marks=[])
        finally:
            if self._calls.get(key) is call:
                del self._calls[key]
            call.end()

    def _key(self, scope: Scope, body: bytes, parsed: Any, tenant: str | None) -> bytes:
        sent = [(name.lower(), value) for name, value in self._upstream.headers_on(scope["headers"]).items()]
        headers = sorted(
            (name, value) for name, value in sent if name not in self._apart and not name.startswith(APART_PREFIX)
        )
        question = body if PEOPLE_FIELDS.isdisjoint(parsed) else without_people(body)
        return sha256(orjson.dumps((tenant, headers)) + b"\n" + question).digest()


class Ride:
    """One caller's place in a call; ``joined`` says that the call was on its way already."""

    def __init__(self, call: _Call, joined: bool) -> None:
        self.joined = joined
        self._call = call
        self._place = call.enter()

    async def take(self, receive: Receive, send: Send, marks: Headers) -> Passed:
        """Send the answer on from its first byte, ``marks`` added to its headers; never raises.

        Ends early, as a dead upstream would have it, where the caller leaves, is cut off, or the upstream dies.
        """
        riding = self._place.task = asyncio.create_task(self._replay(send, marks))
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait((riding, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            riding.cancel()
            gone.cancel()
            await asyncio.gather(riding, gone, return_exceptions=True)
            self._call.leave(self._place)
        return replace(self._call.passed, status=self._place.status)

    async def _replay(self, send: Send, marks: Headers) -> None:
        while (message := await self._call.next(self._place)) is not None:
            if message["type"] == "http.response.start":
                self._place.status = message["status"]
                message = {**message, "headers": marks + message["headers"]}
            await send(message)


class _Place:
    """How far one caller is; ``status`` is the answer's, once it was sent."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.status = 0
        self.task: asyncio.Task[None] | None = None


class _Call:
    """One call of the upstream, seen from both sides: its answer comes in by ``send``, callers take it by ``next``."""

    def __init__(self) -> None:
        self.joinable = True
        self.passed = Passed()
        self.task: asyncio.Task[None] | None = None
        self._messages: deque[Message] = deque()  # from number _first on
        self._first = 0
        self._bytes = 0
        self._ended = False
        self._places: list[_Place] = []
        self._abandoned = asyncio.Event()
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    def enter(self) -> _Place:
        """A place at the answer's beginning."""
        place = _Place(0)
        self._places.append(place)
        return place

    def leave(self, place: _Place) -> None:
        """Give up a place; with the last one the upstream's call ends, unless it has."""
        self._places.remove(place)
        if not self._places:
            self.joinable = False
            self._abandoned.set()
        self._forget()

    async def receive(self) -> Message:
        """What the upstream's side hears of its client: that it leaves when all have left."""
        await self._abandoned.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take one message of the answer, and wait where too much of it is held."""
        self._messages.append(message)
        self._bytes += len(message.get("body", b""))
        self._wake()
        if self._bytes > MOST_BYTES:
            self.joinable = False
            self._forget()
            while self._bytes > MOST_BYTES:
                await self._wait_for_room()

    def end(self) -> None:
        """There is no more."""
        self._ended = True
        self.joinable = False
        self._wake()

    async def next(self, place: _Place) -> Message | None:
        """The next message for that place, or None after the last one."""
        while place.position == self._first + len(self._messages):
            if self._ended:
                return None
            await self._news.wait()
        message = self._messages[place.position - self._first]
        place.position += 1
        if not self.joinable:
            self._forget()
        return message

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _forget(self) -> None:
        """Drop what all have taken, once nobody can come any more who needs it."""
        if self.joinable:
            return
        upto = min((place.position for place in self._places), default=self._first + len(self._messages))
        while self._first < upto:
            self._bytes -= len(self._messages.popleft().get("body", b""))
            self._first += 1
            self._room.set()

    async def _wait_for_room(self) -> None:
        self._room.clear()
        try:
            async with asyncio.timeout(STALL_S):
                await self._room.wait()
        except TimeoutError:
            newest = self._first + len(self._messages)
            if any(place.position == newest for place in self._places):
                for place in self._places:
                    if place.position == self._first and place.task is not None:
                        place.task.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
