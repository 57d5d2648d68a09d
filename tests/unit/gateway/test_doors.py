"""At the door: one sound key, no more requests than it may make, whatever the clock does."""

from __future__ import annotations

import time
from hashlib import sha256

import pytest

from gateway.doors import REFUSAL, Doors, Refusal, Refused
from gateway.metrics import Metrics
from prebake.keys import Key
from prebake.limits import Limits
from prebake.settings import Gateway, Settings


def key(name: str, rate: int = 0) -> Key:
    return Key(name=name, sha256=sha256(name.encode()).hexdigest(), requests_per_minute=rate)


def doors(*keys: Key) -> Doors:
    return Doors(Settings(keys=keys), Metrics())


def outcome(doors: Doors, presented: str | None = None, **more: object) -> object:
    """The key's name, None, or why the request was refused."""
    headers = [] if presented is None else [(b"authorization", f"Bearer {presented}".encode())]
    admitted = doors.admit({"headers": headers, **more})
    return admitted.reason if isinstance(admitted, Refusal) else admitted and admitted.name


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_800_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def test_without_keys_the_door_is_open() -> None:
    assert outcome(doors()) is None
    assert outcome(doors(), "whatever") is None


def test_with_keys_it_opens_to_them_alone() -> None:
    door = doors(key("a"), key("b"))
    assert outcome(door, "a") == "a"
    assert outcome(door, "c") == Refused.WRONG_KEY
    assert outcome(door) == Refused.NO_KEY


def test_what_the_connection_or_the_number_of_headers_says_goes_before_the_key() -> None:
    door = Doors(Settings(keys=[key("a")], gateway=Gateway(limits=Limits(headers=1))), Metrics())
    refusal = door.refuse(Refused.TOO_LARGE)
    assert outcome(door, "a", **{REFUSAL: refusal}) == Refused.TOO_LARGE
    assert door.admit({"headers": [(b"x", b"1"), (b"y", b"2")]}) == door.refuse(Refused.HEADERS)


def test_a_minute_holds_so_many_requests_of_each_key_and_the_next_as_many(clock: list[float]) -> None:
    door = doors(key("a", 2), key("b", 1))
    asked = [outcome(door, name) for name in ("a", "a", "a", "b", "b")]
    assert asked == ["a", "a", Refused.RATE_LIMITED, "b", Refused.RATE_LIMITED]
    clock[0] += 45
    refusal = door.admit({"headers": [(b"authorization", b"Bearer a")]})
    assert isinstance(refusal, Refusal)
    assert (b"retry-after", b"15") in refusal.headers
    clock[0] += 15
    assert outcome(door, "a") == "a"


@pytest.mark.parametrize("jump_s", [-86_400.0, -61.0, 61.0, 86_400.0])
def test_a_clock_that_jumps_locks_nobody_out(clock: list[float], jump_s: float) -> None:
    door = doors(key("a", 2))
    assert [outcome(door, "a") for _ in range(3)] == ["a", "a", Refused.RATE_LIMITED]
    clock[0] += jump_s
    assert [outcome(door, "a") for _ in range(3)] == ["a", "a", Refused.RATE_LIMITED]


def test_other_settings_are_in_force_at_once_and_what_was_counted_stays_counted(clock: list[float]) -> None:
    door = doors(key("a", 2))
    assert outcome(door, "a") == "a"
    door.use(Settings(keys=[key("a", 2), key("b")]))
    assert [outcome(door, "a"), outcome(door, "a"), outcome(door, "b")] == ["a", Refused.RATE_LIMITED, "b"]
    door.use(Settings(keys=[key("b")]))
    assert [outcome(door, "a"), outcome(door, "b")] == [Refused.WRONG_KEY, "b"]
    door.use(Settings())
    assert outcome(door, "a") is None
