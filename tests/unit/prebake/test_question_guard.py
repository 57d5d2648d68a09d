"""Questions that only look alike are kept apart, whatever their similarity; paraphrases are not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.question_guard import Difference, difference, words

WORDS = ("the", "cat", "dog", "sees", "chases", "a", "猫", "狗", "見", "σκύλος", "γάτα")
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("asked", "baked", "why"),
    [
        ("merge main into develop", "merge develop into main", Difference.ORDER),
        ("Is a cat bigger than a dog?", "Is a dog bigger than a cat?", Difference.ORDER),
        ("猫比狗大吗", "狗比猫大吗", Difference.ORDER),
        ("is a cat a cat", "is a cat", Difference.ORDER),
        ("How do I turn on dark mode?", "How do I turn off dark mode?", Difference.POLARITY),
        ("Is port 6379 open by default?", "Is port 6379 closed by default?", Difference.POLARITY),
        ("How do I enable two-factor login?", "How do I disable two-factor login?", Difference.POLARITY),
        ("Can I return it?", "Can\u2019t I return it?", Difference.POLARITY),
        ("Why is it working?", "Why is it not working?", Difference.POLARITY),
        ("Is it a verified card?", "Is it an unverified card?", Difference.POLARITY),
        ("Refund after 30 days", "Refund after 60 days", Difference.NUMBER),
        ("Are you there on Monday?", "Are you there on Friday?", Difference.NUMBER),
        ("What is ½ of it?", "What is ¼ of it?", Difference.NUMBER),
        ("What is my name?", "What is your name?", Difference.SUBJECT),
        ("Why do you need it?", "When do you need it?", Difference.SUBJECT),
        ("a + b", "a / b", Difference.SYMBOL),
        ("price in $", "price in €", Difference.SYMBOL),
    ],
)
def test_questions_with_another_answer_are_kept_apart(asked: str, baked: str, why: Difference) -> None:
    assert difference(asked, baked) is why
    assert difference(baked, asked) is why


@pytest.mark.parametrize(
    ("asked", "baked"),
    [
        ("How do I reset the password?", "how can I reset the password"),
        ("Please tell what a refund is", "tell what a refund is!"),
        ("Where\u2019s the closest station?", "where's the nearest station"),
        ("WHAT IS A   REFUND", "What is a refund?"),
    ],
)
def test_other_words_for_the_same_pass(asked: str, baked: str) -> None:
    assert difference(asked, baked) is None


def test_a_word_the_embedding_does_not_see_keeps_questions_apart() -> None:
    assert difference("who is xyzzy", "who is plugh", {"xyzzy", "plugh"}) is Difference.UNKNOWN
    assert difference("who is xyzzy", "so who is xyzzy", {"xyzzy"}) is None


@given(sentence=SENTENCES, seed=st.integers(0, 1000))
def test_the_same_words_in_another_order_never_pass(sentence: list[str], seed: int) -> None:
    shuffled = random.Random(seed).sample(sentence, len(sentence))
    passes = difference(" ".join(sentence), " ".join(shuffled)) is None
    assert passes == (words(" ".join(sentence)) == words(" ".join(shuffled)))


@given(first=st.text(max_size=40), second=st.text(max_size=40))
def test_any_two_texts_can_be_compared_either_way_round(first: str, second: str) -> None:
    assert difference(first, second) is difference(second, first)
    assert difference(first, first) is None
