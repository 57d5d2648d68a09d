"""The order of the night by properties: nobody is left out, shared prefixes stay together, short answers end it."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.order import BLOCK_CHARS, order, prefix_key, shared_blocks

# Few letters in many blocks: prompts that share none, some or all of their blocks.
prompts = st.lists(st.text("ab", max_size=5).map(lambda text: "".join(letter * BLOCK_CHARS for letter in text)))
lengths = st.integers(1, 500)
machines = st.sampled_from([1, 4, 64, 1024])

texts = st.text("ab", max_size=3)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": texts}), min_size=1, max_size=3
)
params = st.fixed_dictionaries({}, optional={"temperature": st.just(0), "documents": st.just([{"text": "a"}])})


def put(keys: Sequence[str], tokens: Sequence[float], at_once: int) -> list[int]:
    """The order of the prompts, whose keys need not be sorted."""
    ranks = sorted(range(len(keys)), key=lambda number: keys[number])
    shared = [shared_blocks(keys[a], keys[b]) for a, b in pairwise(ranks)]
    found = order([0, *shared] if ranks else [], [tokens[number] for number in ranks], at_once)
    return [ranks[place] for place in found]


def canonical(messages: list[dict[str, str]], params: dict[str, Any]) -> str:
    body = {"messages": messages, "model": "m", "params": params}
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS).decode()


def runs(values: Sequence[object]) -> list[object]:
    return [value for value, _ in groupby(values)]


def steps(tokens: Sequence[float], at_once: int) -> float:
    """How long an engine takes that works on so many answers at once, a token of each in a step."""
    busy = [0.0] * at_once
    for length in tokens:
        heapq.heapreplace(busy, busy[0] + length)
    return max(busy)


@given(prompts, st.data(), machines)
def test_each_prompt_is_asked_once(keys: list[str], data: st.DataObject, at_once: int) -> None:
    tokens = data.draw(st.lists(lengths, min_size=len(keys), max_size=len(keys)))
    assert sorted(put(keys, tokens, at_once)) == list(range(len(keys)))


@given(prompts, st.data(), machines, st.integers(1, 5))
def test_prompts_that_share_their_first_blocks_are_neighbours(
    keys: list[str], data: st.DataObject, at_once: int, blocks: int
) -> None:
    tokens = data.draw(st.lists(lengths, min_size=len(keys), max_size=len(keys)))
    found = [keys[number][: blocks * BLOCK_CHARS] for number in put(keys, tokens, at_once)]
    whole = runs([prefix for prefix in found if len(prefix) == blocks * BLOCK_CHARS])
    assert len(whole) == len(set(whole))


@given(prompts, st.data(), machines)
def test_the_order_does_not_hang_on_that_of_the_log(keys: list[str], data: st.DataObject, at_once: int) -> None:
    asked = [(key, data.draw(lengths)) for key in set(keys)]
    other = data.draw(st.permutations(asked))
    first, second = ([a[i] for i in put([k for k, _ in a], [t for _, t in a], at_once)] for a in (asked, other))
    # Answers of one length and prompts of one prefix may not change places either: keys that differ break the tie.
    assert [key for key, _ in first] == [key for key, _ in second]


@given(st.lists(lengths), machines)
def test_who_is_asked_leaves_work_for_all_machines_or_nobody_longer(tokens: list[int], at_once: int) -> None:
    found = [tokens[number] for number in order([0] * len(tokens), tokens, at_once)]
    left = list(accumulate(reversed(found), initial=0))[::-1]
    for place, length in enumerate(found):
        assert left[place + 1] >= at_once * length or all(later <= length for later in found[place + 1 :])


def test_long_and_short_answers_take_turns_until_the_end() -> None:
    chance = random.Random(7)
    tokens = [chance.lognormvariate(4, 1) for _ in range(20_000)]
    found = [tokens[number] for number in order([0] * len(tokens), tokens, 16)]
    thousands = [sum(found[start : start + 1000]) for start in range(0, 15_000, 1000)]
    assert max(thousands) < 1.25 * min(thousands)


def test_no_machine_waits_for_a_straggler() -> None:
    chance = random.Random(7)
    tokens = [chance.lognormvariate(4, 1) for _ in range(2000)]
    ideal = sum(tokens) / 64
    assert steps([tokens[number] for number in order([0] * len(tokens), tokens, 64)], 64) < 1.01 * ideal
    assert steps(tokens, 64) > 1.1 * ideal


def test_the_last_group_is_that_of_the_short_answers_and_ends_with_its_shortest() -> None:
    shared = [0, 9, 9, 0, 9, 9]
    assert order(shared, [3, 1, 2, 30, 10, 20], at_once=64) == [3, 5, 4, 0, 2, 1]


def test_a_deep_trie_of_a_hundred_thousand_prompts_needs_no_deep_stack() -> None:
    assert len(order(range(100_000), [1.0] * 100_000, 8)) == 100_000


@given(st.lists(st.tuples(messages, params), min_size=2), st.integers(1, 3))
def test_keys_in_order_put_requests_together_that_begin_with_the_same_messages(
    asked: list[tuple[list[dict[str, str]], dict[str, Any]]], first: int
) -> None:
    asked.sort(key=lambda one: prefix_key(canonical(*one)))
    # What a chat template writes: documents first, then role and text of each message.
    read = [
        (params.get("documents"), [(message["role"], message["content"]) for message in messages[:first]])
        for messages, params in asked
    ]
    whole = runs([prefix for prefix in read if len(prefix[1]) == first])
    assert all(whole.count(prefix) == 1 for prefix in whole)


@given(st.lists(st.tuples(messages, params), min_size=2), st.text("ab", min_size=1, max_size=2))
@example(
    [([{"role": role, "content": text}], {}) for text, role in (("a", "user"), ("aa", "system"), ("ab", "user"))], "a"
)
def test_keys_in_order_put_requests_together_whose_first_text_begins_alike(
    asked: list[tuple[list[dict[str, str]], dict[str, Any]]], text: str
) -> None:
    asked.sort(key=lambda one: prefix_key(canonical(*one)))
    begins = [
        (params.get("documents"), messages[0]["role"]) if messages[0]["content"].startswith(text) else None
        for messages, params in asked
    ]
    together = runs(begins)
    assert all(together.count(begin) == 1 for begin in together if begin is not None)


def test_a_request_without_a_text_has_a_key() -> None:
    call = {"role": "assistant", "tool_calls": [{"id": "1"}]}
    assert prefix_key(canonical([call], {})).startswith('[{},["assistant",null,{"tool_calls"')  # type: ignore[list-item]


@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=300))
def test_whole_blocks_in_common_are_counted(common: str, one: str, other: str) -> None:
    blocks = shared_blocks(common + one, common + other)
    end = blocks * BLOCK_CHARS
    assert (common + one)[:end] == (common + other)[:end]
    assert blocks >= len(common) // BLOCK_CHARS
