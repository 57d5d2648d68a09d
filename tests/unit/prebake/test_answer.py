"""An answer keeps what it is given, and cannot be changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from prebake.answer import Answer

KEY = bytes(range(16))
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


def make(**fields: object) -> Answer:
    values = {
        "fingerprint": KEY,
        "route": "faq",
        "message_json": b'{"role":"assistant","content":"yes"}',
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "model": "m",
        "run_id": "run",
        "baked_at": NOON,
        "expires_at": NOON + timedelta(days=7),
    }
    return Answer(**(values | fields))  # type: ignore[arg-type]


def test_times_of_any_zone_are_kept_in_utc() -> None:
    answer = make(baked_at=datetime(2026, 3, 10, 14, tzinfo=timezone(timedelta(hours=2))))
    assert answer.baked_at == NOON
    assert answer.baked_at.tzinfo is UTC


def test_times_without_a_zone_are_refused() -> None:
    with pytest.raises(TypeError):
        make(baked_at=datetime(2026, 3, 10))  # noqa: DTZ001 - that is the point


def test_an_answer_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        make().message_json = b"{}"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        make().another = 1  # type: ignore[attr-defined]
