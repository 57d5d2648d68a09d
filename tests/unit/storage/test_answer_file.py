"""The file of answers gives back what was written, whatever the order and the keys, and never a wrong answer."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.answer import Answer
from prebake.answer_file import EVER, HEADER, MAGIC, AnswerFile, record_of
from prebake.errors import SnapshotError
from storage.answer_file import write_answers
from tests.answers import KEY, make_answer

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
times = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive
counts = st.integers(0, 2**32 - 1)
# Some that differ in their last byte alone, and so lie in one bucket; some at the ends; some like real ones.
keys = st.one_of(
    st.integers(0, 5).map(lambda number: bytes(15) + bytes([number])),
    st.integers(0, 5).map(lambda number: b"\xff" * 15 + bytes([255 - number])),
    st.binary(min_size=16, max_size=16),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("snapshot") / "answers.bin"


def test_every_answer_comes_back_as_it_was(file: Path) -> None:
    @given(
        st.builds(
            make_answer,
            keys,
            route=texts,
            finish_reason=texts,
            model=texts,
            run_id=texts.filter(str.isprintable),
            prompt_tokens=counts,
            completion_tokens=counts,
            baked_at=times,
            expires_at=times,
            message_json=st.dictionaries(texts, texts, min_size=1).map(orjson.dumps),
        )
    )
    def check(answer: Answer) -> None:
        write_answers(file, [answer])
        assert AnswerFile(file).get(answer.fingerprint, EVER) == answer

    check()


def test_whatever_the_order_each_key_finds_its_last_answer_and_other_keys_none(file: Path) -> None:
    @given(st.lists(st.tuples(keys, st.integers(0, 9).map(lambda number: b"%d" % number))), keys)
    def check(written: list[tuple[bytes, bytes]], other: bytes) -> None:
        write_answers(file, [make_answer(key, message_json=message) for key, message in written])
        expected = dict(written)
        answers = AnswerFile(file)
        assert list(answers) == sorted(expected)
        assert len(answers) == len(expected)
        for key in (*expected, other):
            found = answers.get(key, EVER)
            assert (found and found.message_json) == expected.get(key)

    check()


def test_many_answers_are_found(file: Path) -> None:
    keys = [(number * 0x9E3779B97F4A7C15 % 2**128).to_bytes(16, "big")[::-1] for number in range(25_000)]
    write_answers(file, (make_answer(key, completion_tokens=number) for number, key in enumerate(keys)))
    answers = AnswerFile(file)
    found = [answers.get(key, EVER) for key in keys]
    assert [answer and answer.completion_tokens for answer in found] == list(range(25_000))
    assert list(answers) == sorted(keys)


def test_what_has_expired_is_not_found(file: Path) -> None:
    write_answers(file, [make_answer()])
    answers, end_us = AnswerFile(file), make_answer().expires_us
    assert answers.get(KEY, end_us - 1) is not None
    assert answers.get(KEY, end_us) is None


def test_damaged_bytes_are_an_error_or_another_answer_of_that_key_and_nothing_else(file: Path) -> None:
    @given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), min_size=1, max_size=4), st.integers(0, 300))
    def check(flips: list[tuple[int, int]], cut: int) -> None:
        write_answers(file, [make_answer(bytes(15) + bytes([number])) for number in range(3)])
        content = bytearray(file.read_bytes())
        for place, mask in flips:
            content[place % len(content)] ^= mask
        file.write_bytes(content[: max(0, len(content) - cut)])
        with suppress(SnapshotError):
            answers = AnswerFile(file)
            for number in range(3):
                key = bytes(15) + bytes([number])
                with suppress(SnapshotError):
                    found = answers.get(key, EVER)
                    assert found is None or found.fingerprint == key
            list(answers)

    check()


@pytest.mark.parametrize("cut", [1, 36, 100])
def test_a_file_that_was_cut_short_is_refused_by_name(file: Path, cut: int) -> None:
    write_answers(file, [make_answer()])
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(SnapshotError, match=f"{file}: not as long as its directory says.*rollback"):
        AnswerFile(file)


@pytest.mark.parametrize("place", [16, 20, 48])
def test_an_answer_whose_record_is_damaged_says_so(file: Path, place: int) -> None:
    write_answers(file, [make_answer()])
    content = bytearray(file.read_bytes())
    start = len(content) - len(record_of(make_answer()))
    content[start + place] ^= 0x81  # lengths; the names
    file.write_bytes(content)
    with pytest.raises(SnapshotError, match=f"{file}: damaged at answer {KEY.hex()}.*rollback"):
        AnswerFile(file).get(KEY, EVER)


@pytest.mark.parametrize(
    "content", [b"", b"prebake\n", bytes(64), b"PAR1" + bytes(64), HEADER.pack(MAGIC, 1, 33, 0) + bytes(64)]
)
def test_what_is_no_file_of_answers_is_refused_by_name(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(SnapshotError, match=f"{file}: not a snapshot's data"):
        AnswerFile(file)


def test_a_file_from_the_future_asks_for_an_upgrade(file: Path) -> None:
    file.write_bytes(HEADER.pack(MAGIC, 2, 0, 0) + bytes(16))
    with pytest.raises(SnapshotError, match="in format 2, this prebake reads format 1; upgrade"):
        AnswerFile(file)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_tokens": -1},
        {"completion_tokens": 2**32},
        {"model": "m" * 70_000},
        {"run_id": "r\r\nset-cookie: a=b"},
    ],
)
def test_what_no_answer_can_have_is_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(SnapshotError, match=KEY.hex()):
        record_of(make_answer(**fields))


def test_the_message_is_kept_as_bytes_ready_for_the_response() -> None:
    message = b'{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function"}]}'
    assert record_of(make_answer(message_json=message)).endswith(message)
