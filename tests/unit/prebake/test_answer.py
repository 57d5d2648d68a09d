"""Answers come back from their bytes as they went in, and damaged bytes are an error, never another answer."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.answer import Answer
from prebake.errors import SnapshotError

KEY = bytes(range(16))
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
times = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive
counts = st.integers(0, 2**32 - 1)


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


@given(
    texts,
    texts,
    texts,
    texts.filter(str.isprintable),
    counts,
    counts,
    times,
    times,
    st.dictionaries(texts, texts, min_size=1),
)
def test_every_answer_comes_back_as_it_was(
    route: str,
    reason: str,
    model: str,
    run_id: str,
    prompt: int,
    completion: int,
    baked_at: datetime,
    expires_at: datetime,
    message: dict[str, str],
) -> None:
    answer = make(
        route=route,
        finish_reason=reason,
        model=model,
        run_id=run_id,
        prompt_tokens=prompt,
        completion_tokens=completion,
        baked_at=baked_at,
        expires_at=expires_at,
        message_json=orjson.dumps(message),
    )
    again = Answer.decode(KEY, answer.encode())
    assert again == answer
    assert (again.route, again.finish_reason, again.model, again.run_id) == (route, reason, model, run_id)
    assert (again.prompt_tokens, again.completion_tokens) == (prompt, completion)
    assert (again.baked_at, again.expires_at) == (baked_at, expires_at)
    assert again.message == message


def test_the_message_is_kept_as_bytes_ready_for_the_response() -> None:
    message = b'{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function"}]}'
    assert make(message_json=message).encode().endswith(message)


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


@given(st.integers(0, 60))
def test_a_value_that_was_cut_short_is_damaged(length: int) -> None:
    header_and_names = len(make().encode()) - len(make().message_json)
    with pytest.raises(SnapshotError, match=f"{KEY.hex()}.*damaged.*rollback"):
        Answer.decode(KEY, make().encode()[: min(length, header_and_names)])


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_snapshot_error(value: bytes) -> None:
    with suppress(SnapshotError):
        assert isinstance(Answer.decode(KEY, b"\x01" + value), Answer)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_format_is_said_and_what_to_do(version: int) -> None:
    with pytest.raises(SnapshotError, match=f"format {version}, this prebake reads format 1; upgrade"):
        Answer.decode(KEY, bytes([version]) + make().encode()[1:])


@pytest.mark.parametrize(
    "fields",
    [{"prompt_tokens": -1}, {"completion_tokens": 2**32}, {"model": "m" * 70_000}, {"run_id": "r\r\nset-cookie: a=b"}],
)
def test_what_no_answer_can_have_is_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(SnapshotError, match=KEY.hex()):
        make(**fields).encode()
