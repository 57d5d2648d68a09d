"""One call for identical requests, with callers and an upstream whose pace the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from gateway import coalesce
from gateway.coalesce import Coalescing, Ride
from gateway.upstream import Passed

BODY = b'{"model":"m","messages":[]}'
START = {"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"1")]}
END = {"type": "http.response.body", "body": b"", "more_body": False}
MARK = [(b"x-prebake", b"miss")]


class Model:
    """An upstream that answers its first call chunk by chunk, as the test feeds it."""

    def __init__(self) -> None:
        self.calls = 0
        self.sent = 0
        self.left = 0
        self.chunks: asyncio.Queue[bytes | None] = asyncio.Queue()

    def headers_on(self, headers: Any) -> CIMultiDict[str]:
        return CIMultiDict((name.decode(), value.decode()) for name, value in headers)

    async def forward(self, _scope: Any, receive: Any, send: Any, **_rest: Any) -> Passed:
        self.calls += 1
        answering = asyncio.create_task(self._answer(send))
        leaving = asyncio.create_task(receive())
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            self.left += 1
            answering.cancel()
        leaving.cancel()
        return Passed(200, bytearray(b"tail"), 4, answering.done())

    async def _answer(self, send: Any) -> None:
        if self.calls > 1:  # the chunks are the first call's
            await asyncio.Event().wait()
        await send(START)
        while (chunk := await self.chunks.get()) is not None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            self.sent += 1
        await send(END)


class Caller:
    """Takes the answer; stops reading while ``reading`` is not set."""

    def __init__(self) -> None:
        self.body = b""
        self.start: dict[str, Any] = {}
        self.ended = False
        self.reading = asyncio.Event()
        self.reading.set()
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.reading.wait()
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.body += message["body"]
            self.ended = not message["more_body"]


def headers(**values: str) -> dict[str, Any]:
    return {"headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in values.items()]}


def board(one: Coalescing, scope: dict[str, Any] | None = None, body: bytes = BODY, tenant: str | None = None) -> Ride:
    return one.board(scope or headers(authorization="Bearer a"), body, orjson.loads(body), tenant)


async def settle() -> None:
    """Until nothing moves any more but what the test moves."""
    for _ in range(50):
        await asyncio.sleep(0)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(20):
            await story()

    asyncio.run(within())


def taking(ride: Ride, caller: Caller) -> asyncio.Task[Passed]:
    return asyncio.create_task(ride.take(caller.receive, caller.send, MARK))


def test_who_comes_later_gets_the_answer_from_its_first_byte() -> None:
    async def story() -> None:
        model, first, second = Model(), Caller(), Caller()
        one = Coalescing(model)
        ride = board(one)
        assert not ride.joined
        leading = taking(ride, first)
        model.chunks.put_nowait(b"a")
        model.chunks.put_nowait(b"b")
        await settle()
        assert first.body == b"ab"
        ride = board(one)
        assert ride.joined
        following = taking(ride, second)
        model.chunks.put_nowait(b"c")
        model.chunks.put_nowait(None)
        assert await leading == await following == Passed(200, bytearray(b"tail"), 4, True)
        assert first.body == second.body == b"abc"
        assert first.start == second.start == {**START, "headers": MARK + START["headers"]}
        assert first.ended
        assert second.ended
        assert model.calls == 1
        assert not board(one).joined

    run(story)


def test_one_who_leaves_harms_nobody_and_the_last_one_ends_the_call() -> None:
    async def story() -> None:
        model, first, second, third = Model(), Caller(), Caller(), Caller()
        one = Coalescing(model)
        rides = [taking(board(one), caller) for caller in (first, second, third)]
        model.chunks.put_nowait(b"a")
        await settle()
        first.gone.set()
        await rides[0]
        model.chunks.put_nowait(b"b")
        await settle()
        assert (second.body, third.body, model.left) == (b"ab", b"ab", 0)
        second.gone.set()
        third.gone.set()
        await asyncio.gather(*rides)
        await settle()
        assert model.left == 1
        assert not board(one).joined

    run(story)


def test_a_slow_caller_waits_for_nobody_and_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalesce, "MOST_BYTES", 100)

    async def story() -> None:
        model, fast, slow = Model(), Caller(), Caller()
        one = Coalescing(model)
        rides = [taking(board(one), caller) for caller in (fast, slow)]
        slow.reading.clear()
        for _ in range(50):
            model.chunks.put_nowait(b"x" * 10)
        model.chunks.put_nowait(None)
        await settle()
        assert model.sent <= 11
        assert len(fast.body) <= 110
        assert not board(one).joined  # its first bytes may be gone
        slow.reading.set()
        await asyncio.gather(*rides)
        assert fast.body == slow.body == b"x" * 500
        assert model.calls == 2

    run(story)


def test_a_caller_who_takes_nothing_while_others_wait_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalesce, "MOST_BYTES", 100)
    monkeypatch.setattr(coalesce, "STALL_S", 0.05)

    async def story() -> None:
        model, fast, stalled = Model(), Caller(), Caller()
        one = Coalescing(model)
        rides = [taking(board(one), caller) for caller in (fast, stalled)]
        stalled.reading.clear()
        for _ in range(50):
            model.chunks.put_nowait(b"x" * 10)
        model.chunks.put_nowait(None)
        await asyncio.gather(*rides)
        assert (fast.body, fast.ended) == (b"x" * 500, True)
        assert not stalled.ended

    run(story)


def test_a_caller_alone_may_be_as_slow_as_without_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalesce, "MOST_BYTES", 100)
    monkeypatch.setattr(coalesce, "STALL_S", 0.01)

    async def story() -> None:
        model, slow = Model(), Caller()
        ride = taking(board(Coalescing(model)), slow)
        slow.reading.clear()
        for _ in range(50):
            model.chunks.put_nowait(b"x" * 10)
        model.chunks.put_nowait(None)
        await asyncio.sleep(0.1)  # ten times as long as others would be waited for
        slow.reading.set()
        await ride
        assert (slow.body, slow.ended) == (b"x" * 500, True)

    run(story)


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "b"},
        {"tenant": None},
        {"scope": headers(authorization="Bearer b")},
        {"scope": headers(authorization="Bearer a", openai_organization="o")},
        {"scope": headers(authorization="Bearer a", accept_encoding="br")},
        {"scope": headers(authorization="Bearer a", x_unknown="1")},
        {"scope": headers(authorization="Bearer a", x_prebake_namespace="n")},
        {"scope": {"headers": []}},
        {"body": b'{"model":"m","messages":[] }'},
        {"body": b'{"model":"m","messages":[],"stream":true}'},
    ],
    ids=range(10),
)
def test_requests_that_are_not_identical_go_up_each_for_itself(other: dict[str, Any]) -> None:
    async def story() -> None:
        one = Coalescing(Model())
        rides = [board(one, tenant="a"), board(one, **{"tenant": "a", **other})]
        assert [ride.joined for ride in rides] == [False, False]
        for ride in rides:
            await leave(ride)

    run(story)


@pytest.mark.parametrize(
    ("scope", "body"),
    [
        (headers(authorization="Bearer a", user_agent="x/2", traceparent="00-1", x_stainless_retry_count="1"), BODY),
        (headers(Authorization="Bearer a", x_forwarded_for="10.0.0.7", x_person="bob"), BODY),
        (headers(authorization="Bearer a"), b'{"model":"m","messages":[],"user":"bob","metadata":{"a":"b"}}'),
    ],
    ids=range(3),
)
def test_people_connections_and_traces_do_not_keep_requests_apart(scope: dict[str, Any], body: bytes) -> None:
    async def story() -> None:
        one = Coalescing(Model(), "X-Person")
        rides = [board(one), board(one, scope, body)]
        assert [ride.joined for ride in rides] == [False, True]
        for ride in rides:
            await leave(ride)

    run(story)


async def leave(ride: Ride) -> None:
    """Take a ride and leave at once."""
    caller = Caller()
    caller.gone.set()
    await ride.take(caller.receive, caller.send, MARK)
