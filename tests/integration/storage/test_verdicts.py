"""Verdicts in the store: none is lost, whoever else gives one at the same time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from prebake.errors import StorageError
from prebake.settings import Settings
from storage.objects import Objects, open_objects
from storage.verdicts import KEY, approve, block, forget_approvals, read_verdicts, unblock
from tests.integration.storage.race import race

NOW = datetime(2026, 11, 25, tzinfo=UTC)
KEYS = [bytes([number] * 16) for number in range(8)]

_BLOCK_TEN = """
from datetime import UTC, datetime
from storage.objects import open_objects
from storage.verdicts import block
objects = open_objects(settings.store)
ready()
for each in range(10):
    block(objects, [bytes([number, each] * 8)], now=datetime.now(UTC))
tell("done")
"""


@pytest.fixture
def objects(any_settings: Settings) -> Objects:
    return open_objects(any_settings.store)


def test_a_store_without_verdicts_has_none(objects: Objects) -> None:
    found = read_verdicts(objects)
    assert not found.blocked
    assert not found.approved


def test_each_change_leaves_the_others_as_they_were(objects: Objects) -> None:
    block(objects, KEYS[:3], now=NOW, note="wrong")
    approve(objects, {KEYS[3]: "a" * 32}, now=NOW)
    unblock(objects, [KEYS[0], KEYS[7]])
    found = read_verdicts(objects)
    assert found.blocked_keys == set(KEYS[1:3])
    assert found.blocked[KEYS[1].hex()].note == "wrong"
    assert found.approved[KEYS[3].hex()].answer == "a" * 32


def test_of_verdicts_given_at_the_same_time_none_is_lost(any_settings: Settings, objects: Objects) -> None:
    race(any_settings, _BLOCK_TEN, processes=3)
    assert len(read_verdicts(objects).blocked) == 30


def test_an_approval_given_anew_while_it_was_found_dead_stays(objects: Objects) -> None:
    approve(objects, {KEYS[0]: "a" * 32, KEYS[1]: "b" * 32, KEYS[2]: "c" * 32}, now=NOW)
    dead = dict(read_verdicts(objects).approved)
    approve(objects, {KEYS[1]: "d" * 32}, now=NOW)  # another answer
    approve(objects, {KEYS[2]: "c" * 32}, now=NOW + timedelta(seconds=1))  # the same again
    left = forget_approvals(objects, dead).approved
    assert {key: approval.answer for key, approval in left.items()} == {
        KEYS[1].hex(): "d" * 32,
        KEYS[2].hex(): "c" * 32,
    }
    assert read_verdicts(objects).approved == left


def test_damaged_verdicts_are_never_overwritten(objects: Objects) -> None:
    objects.write(KEY, b"{")
    with pytest.raises(StorageError, match=r"verdicts.json: damaged"):
        block(objects, KEYS, now=NOW)
    assert objects.read(KEY) == b"{"
