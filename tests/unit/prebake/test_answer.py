"""An answer keeps what it is given, and cannot be changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from tests.answers import NOON, make_answer


def test_times_of_any_zone_are_kept_in_utc() -> None:
    answer = make_answer(baked_at=datetime(2026, 3, 10, 14, tzinfo=timezone(timedelta(hours=2))))
    assert answer.baked_at == NOON
    assert answer.baked_at.tzinfo is UTC


def test_times_without_a_zone_are_refused() -> None:
    with pytest.raises(TypeError):
        make_answer(baked_at=datetime(2026, 3, 10))  # noqa: DTZ001 - that is the point


def test_an_answer_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        make_answer().message_json = b"{}"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        make_answer().another = 1  # type: ignore[attr-defined]
