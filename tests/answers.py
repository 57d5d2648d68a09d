"""Answers for tests that look at one field or two: all others have values that mean nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prebake.answer import Answer

KEY = bytes(range(16))
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


def make_answer(fingerprint: bytes = KEY, **fields: object) -> Answer:
    """An answer with these fields."""
    values = {
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
    return Answer(fingerprint, **(values | fields))  # type: ignore[arg-type]
