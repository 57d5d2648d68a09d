"""The search for the prompt that kills the engine."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from engine.search import Search


def _run(count: int, killers: set[int], *, answered_before_death: int = 0) -> tuple[bytes | None, int]:
    """Play the engine: it dies on a group with a killer in it, after answering a few harmless ones of that group."""
    search, deaths = Search([bytes([n // 256, n % 256]) for n in range(count)]), 0
    while not search.over:
        group = search.testing
        if any(_number(key) in killers for key in group):
            deaths += 1
            harmless = [key for key in group if _number(key) not in killers][:answered_before_death]
            culprit = search.died([key for key in group if key not in harmless])
            if culprit:
                return culprit, deaths
        else:
            search.survived()
    return None, deaths


def _number(key: bytes) -> int:
    return int.from_bytes(key, "big")


@given(st.integers(2, 1024).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))), st.integers(0, 8))
def test_one_killer_among_n_is_found_in_at_most_log2_n_deaths(case: tuple[int, int], answered: int) -> None:
    count, killer = case
    culprit, deaths = _run(count, {killer}, answered_before_death=answered)
    assert culprit is not None
    assert _number(culprit) == killer
    assert deaths <= math.ceil(math.log2(count))


@given(st.integers(1, 1024))
def test_nobody_is_blamed_when_the_engine_died_of_something_else(count: int) -> None:
    assert _run(count, set()) == (None, 0)


@given(st.integers(3, 300), st.integers(0, 2**32))
def test_of_two_killers_one_is_found_and_never_an_innocent(count: int, seed: int) -> None:
    killers = {seed % count, (seed // 7) % count}
    culprit, _ = _run(count, killers)
    assert culprit is not None
    assert _number(culprit) in killers
