"""Whether an answer may be given: never what people blocked; on a route that wants approval, what they approved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from prebake.answer import Answer
from prebake.errors import StorageError
from prebake.routes import Route
from prebake.verdicts import NO_VERDICTS, Approval, Block, Verdicts, Withheld, answer_digest, parse_verdicts

NOW = datetime(2026, 11, 25, tzinfo=UTC)
KEY, OTHER = bytes(16), bytes([1] * 16)
OPEN = Route(name="open", scope="shared")
READ = Route(name="read", scope="shared", approval=True)


def answer(text: str = "so", key: bytes = KEY, **fields: object) -> Answer:
    values = {
        "finish_reason": "stop",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "model": "m",
        "run_id": "r",
        "baked_at": NOW,
        "expires_at": NOW + timedelta(days=1),
    }
    return Answer(key, "open", b'{"role":"assistant","content":"%b"}' % text.encode(), **(values | fields))


def approved(text: str, key: bytes = KEY) -> Verdicts:
    return Verdicts(approved={key.hex(): Approval(answer=answer_digest(answer(text)), at=NOW)})


def test_without_verdicts_only_a_route_that_wants_approval_withholds() -> None:
    assert NO_VERDICTS.withhold(OPEN, KEY, answer()) is None
    assert NO_VERDICTS.withhold(READ, KEY, answer()) is Withheld.UNAPPROVED
    assert NO_VERDICTS.withhold(READ, KEY, None) is None


def test_what_is_blocked_is_withheld_whatever_there_is_and_nothing_else_is() -> None:
    verdicts = Verdicts(blocked={KEY.hex(): Block(at=NOW)}, approved=approved("so").approved)
    for route in (OPEN, READ):
        for found in (answer(), answer("other"), None):
            assert verdicts.withhold(route, KEY, found) is Withheld.BLOCKED
    assert verdicts.withhold(OPEN, OTHER, answer(key=OTHER)) is None


def test_an_approval_is_for_one_answer_to_one_request() -> None:
    verdicts = approved("so")
    assert verdicts.withhold(READ, KEY, answer("so")) is None
    assert verdicts.withhold(READ, KEY, answer("so", run_id="a later night", baked_at=NOW)) is None
    assert verdicts.withhold(READ, KEY, answer("otherwise")) is Withheld.UNAPPROVED
    assert verdicts.withhold(READ, OTHER, answer("so", OTHER)) is Withheld.UNAPPROVED


def test_they_are_what_was_written() -> None:
    verdicts = Verdicts(blocked={KEY.hex(): Block(at=NOW, note="wrong price")}, approved=approved("so").approved)
    assert parse_verdicts(verdicts.model_dump_json().encode(), "here") == verdicts


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "damaged"),
        (b"\xff", "damaged"),
        (b"{}", "damaged"),
        (b'{"format": 1, "blocked": {"xyz": {"at": "2026-11-25T00:00:00Z"}}}', "damaged"),
        (b'{"format": 1, "blocked": ["a"]}', "damaged"),
        (b'{"format": 2, "blocked": "in another way"}', "upgrade prebake"),
    ],
)
def test_what_cannot_be_read_is_refused_and_never_taken_for_no_verdicts(data: bytes, words: str) -> None:
    with pytest.raises(StorageError, match=f"here: .*{words}"):
        parse_verdicts(data, "here")
