"""The arithmetic of a bake's pulse, by a clock that the test turns."""

from __future__ import annotations

import pytest

from prebake.pulse import WINDOW_S, Pace, Pulse, duration, money, seconds_for, speed


def test_a_pace_is_what_was_done_over_the_time_since_the_start() -> None:
    pace = Pace(100.0, 50)
    assert pace.per_s(100.0, 50) == 0
    assert pace.per_s(110.0, 150) == 10
    assert pace.per_s(120.0, 450) == 20


def test_a_pace_forgets_what_is_longer_ago_than_its_window() -> None:
    pace = Pace(0.0, 0)
    for second in range(1, 1001):
        pace.per_s(second, 100 * second)
    for second in range(1, int(WINDOW_S) + 1):
        last = pace.per_s(1000 + second, 100_000 + 7 * second)
    assert last == pytest.approx(7)


def test_a_bake_that_hangs_slows_down_to_nothing() -> None:
    pace = Pace(0.0, 0)
    assert pace.per_s(10.0, 1000) == 100
    assert pace.per_s(20.0, 1000) == 50
    assert pace.per_s(20.0 + WINDOW_S, 1000) == 0


def test_rare_looks_average_over_the_time_between_them() -> None:
    pace = Pace(0.0, 0)
    assert pace.per_s(300.0, 3000) == 10
    assert pace.per_s(600.0, 9000) == 20


def test_a_pace_holds_no_more_than_a_mark_a_second_however_often_it_is_asked() -> None:
    pace = Pace(0.0, 0)
    for tick in range(100_000):
        pace.per_s(tick / 100, tick)
    assert len(pace._marks) <= WINDOW_S + 2


def test_the_count_of_a_lost_shard_taken_back_is_no_negative_pace() -> None:
    assert Pace(0.0, 100).per_s(10.0, 50) == 0


@pytest.mark.parametrize(
    ("amount", "per_s", "seconds"), [(100, 20.0, 5.0), (0, 0.0, 0.0), (-3, 5.0, 0.0), (100, 0.0, None)]
)
def test_the_time_left_is_the_rest_at_that_pace_and_unknown_without_one(
    amount: int, per_s: float, seconds: float | None
) -> None:
    assert seconds_for(amount, per_s) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0.4, "0s"),
        (59.6, "1m00s"),
        (131, "2m11s"),
        (3599.4, "59m59s"),
        (3600, "1h00m"),
        (86_399, "23h59m"),
        (183_600, "2d3h"),
    ],
)
def test_a_time_is_told_in_its_two_largest_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("per_s", "text"), [(None, "?"), (0, "0"), (2130.4, "2,130"), (9999.6, "10k"), (123_456, "123k")]
)
def test_a_speed_is_told_in_a_few_characters(per_s: float | None, text: str) -> None:
    assert speed(per_s) == text


@pytest.mark.parametrize(
    ("usd", "budget", "text"),
    [
        (0, None, "$0.00"),
        (0.0123, 5, "$0.012 of $5.00"),
        (0.9996, None, "$1.00"),
        (1234.5, 2000, "$1,234.50 of $2,000.00"),
        (0, 0, "$0.00 of $0.00"),
    ],
)
def test_money_is_told_in_dollars_with_the_budget_where_there_is_one(
    usd: float, budget: float | None, text: str
) -> None:
    assert money(usd, budget) == text


def test_the_sentence_has_troubles_only_where_there_are_any() -> None:
    quiet = Pulse(answers=1024, planned=2500, tokens_per_s=2130, seconds_left=131, usd=0.12, budget_usd=5)
    assert quiet.sentence() == "1,024 of 2,500 answers, 2,130 tokens/s, 2m11s left, $0.120 of $5.00"
    troubled = Pulse(planned=10, refused=3, engine_restarts=1, leases_lost=2)
    assert troubled.sentence() == (
        "0 of 10 answers, no engine yet, ? left, $0.00, refused: 3, engine restarts: 1, leases lost: 2"
    )
