"""The planning formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity.size import efficiency, machines_needed, usd_per_million_tokens
from prebake.errors import BudgetError


def test_a_hundred_million_tokens_in_six_hours_take_three_machines() -> None:
    assert machines_needed(100e6, 2000, 6, cold_start_h=0.15, preemptions_per_h=0.25, flush_s=360) == 3


def test_no_backlog_needs_no_machine() -> None:
    assert machines_needed(0, 2000, 6) == 0


@given(tokens=st.floats(1, 1e10), hours=st.floats(0.5, 48), rate=st.floats(0, 2))
def test_the_machines_do_the_work_in_time_and_one_fewer_would_not(tokens: float, hours: float, rate: float) -> None:
    machines = machines_needed(tokens, 2000, hours, preemptions_per_h=rate, reserve=0)
    each = 3600 * 2000 * efficiency(rate, 0.2, 5) * (hours - 0.2)
    assert machines * each >= tokens * (1 - 1e-6)
    assert (machines - 1) * each < tokens


def test_more_machines_than_allowed_is_an_error_that_says_how_many() -> None:
    with pytest.raises(BudgetError, match="need 3 machines"):
        machines_needed(100e6, 2000, 6, max_machines=2)


@pytest.mark.parametrize(("hours", "rate"), [(0.1, 0.0), (6, 10.0)])
def test_a_night_that_no_number_of_machines_can_do_is_an_error(hours: float, rate: float) -> None:
    with pytest.raises(BudgetError, match="before a machine has started"):
        machines_needed(1e6, 2000, hours, preemptions_per_h=rate)


def test_time_lost_makes_tokens_dearer() -> None:
    assert usd_per_million_tokens(3.6, 1000) == pytest.approx(1.0)
    assert usd_per_million_tokens(3.6, 1000, eta=0.5) == pytest.approx(2.0)
