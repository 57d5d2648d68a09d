"""The simulator: what it bills, what it counts, and that it shows nobody the future."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capacity.baselines import on_demand_only, spot_greedy, uniform_progress
from capacity.bound import cheapest_usd
from capacity.compare import POLICIES, choose, compare
from capacity.policy import Fleet, Limits, View, decide
from capacity.simulate import Job, simulate
from capacity.synthetic import make_trace
from capacity.trace import Trace
from prebake.errors import InputError

LIMITS = Limits(max_machines=1, cold_start_h=0.25, lost_h=0.01)


def trace(*zones: str, spot_usd: tuple[float, ...] = (2.0, 3.0, 4.0), tick_h: float = 0.5) -> Trace:
    """One zone per string, one tick per character: digits are machines to be had."""
    available = np.array([[int(tick) for tick in zone] for zone in zones], np.int32).T
    prices = np.broadcast_to(np.array(spot_usd[: len(zones)]), available.shape)
    names = tuple(f"z{number}" for number in range(len(zones)))
    return Trace(
        names,
        datetime(2026, 1, 1, tzinfo=UTC),
        tick_h,
        available,
        prices,
        np.full(len(zones), 10.0),
        np.ones(len(zones)),
    )


def always(spot: int) -> object:
    """A policy that wants spot machines in the first zone, as many as there are up to so many."""

    def policy(view: View, limits: Limits) -> Fleet:
        rest = (0,) * (len(view.speed) - 1)
        return Fleet((min(spot, int(view.available[0])), *rest), (0, *rest))

    return policy


def test_a_machine_is_billed_from_its_start_and_works_after_its_cold_start() -> None:
    outcome = simulate(trace("1111"), Job(1.0, 2.0), always(1), LIMITS)
    assert outcome.hours == pytest.approx(1.25)
    assert outcome.usd == pytest.approx(2.0 * 1.25)
    assert (outcome.starts, outcome.preemptions, outcome.missed) == (1, 0, False)


def test_a_preemption_costs_the_last_seconds_of_work_and_a_new_cold_start() -> None:
    outcome = simulate(trace("101111"), Job(1.0, 3.0), always(1), LIMITS)
    assert outcome.preemptions == 1
    assert outcome.starts == 2
    assert outcome.lost_h == pytest.approx(0.01)
    assert outcome.hours == pytest.approx(1.0 + 0.25 + 0.75 + 0.01)
    assert outcome.usd == pytest.approx(2.0 * (0.5 + 0.25 + 0.75 + 0.01))


def test_a_machine_taken_in_its_cold_start_loses_no_work() -> None:
    outcome = simulate(trace("101111", tick_h=0.2), Job(0.5, 1.2), always(1), LIMITS)
    assert (outcome.preemptions, outcome.lost_h) == (1, 0.0)


def test_a_zone_that_shrinks_takes_only_what_it_no_longer_has() -> None:
    outcome = simulate(trace("2211"), Job(10.0, 2.0), always(2), Limits(max_machines=2, cold_start_h=0, lost_h=0))
    assert outcome.preemptions == 1
    assert outcome.done_h[-1] == pytest.approx(2 * 1.0 + 1 * 1.0)


def test_work_left_at_the_deadline_is_a_miss() -> None:
    outcome = simulate(trace("0000"), Job(1.0, 2.0), always(1), LIMITS)
    assert outcome.missed
    assert (outcome.left_h, outcome.usd) == (1.0, 0.0)


def test_a_deadline_between_two_ticks_is_kept_to_the_minute() -> None:
    outcome = simulate(trace("1111"), Job(9.0, 1.1), always(1), LIMITS)
    assert outcome.usd == pytest.approx(2.0 * 1.1)


def test_a_policy_that_asks_for_what_is_not_there_is_refused() -> None:
    with pytest.raises(AssertionError, match="0"):
        simulate(trace("00"), Job(1.0, 1.0), lambda *_: Fleet((1,), (0,)), LIMITS)


def test_a_budget_is_never_overspent() -> None:
    for policy in POLICIES.values():
        outcome = simulate(make_trace(1, days=4), Job(48, 60, budget_usd=100), policy, Limits())
        assert outcome.usd <= 100 + 1e-9


@pytest.mark.parametrize("name", POLICIES)
def test_what_comes_later_in_the_trace_changes_nothing_before_it(name: str) -> None:
    before, other = make_trace(1, days=4), make_trace(2, days=4)
    cut = 100
    altered = Trace(
        before.zones,
        before.start,
        before.tick_h,
        np.concatenate([before.available[:cut], other.available[cut:]]),
        np.concatenate([before.spot_usd[:cut], other.spot_usd[cut:]]),
        before.on_demand_usd,
        before.speed,
    )
    job, limits = Job(60, 63), Limits(max_machines=2)
    first, second = (simulate(each, job, POLICIES[name], limits) for each in (before, altered))
    assert first.machines[:cut] == second.machines[:cut]
    assert first.done_h[:cut] == second.done_h[:cut]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    factor=st.floats(1.05, 2.5),
    width=st.integers(1, 5),
    policy=st.sampled_from([decide, spot_greedy, uniform_progress, on_demand_only]),
)
def test_every_policy_keeps_the_deadline_and_none_undercuts_the_bound(
    seed: int, factor: float, width: int, policy: object
) -> None:
    limits = Limits(max_machines=width)
    made = make_trace(seed, zones=4, days=2)
    job = Job(12.0, 12.0 * factor)
    outcome = simulate(made, job, policy, limits)
    bound = cheapest_usd(made, work_h=12, deadline_h=job.deadline_h, width=width, cold_start_h=limits.cold_start_h)
    assert not outcome.missed
    assert bound <= outcome.usd * (1 + 1e-9)


def test_the_bound_of_one_steady_zone_is_one_run_and_its_cold_start() -> None:
    bound = cheapest_usd(trace("1" * 8), work_h=2.0, deadline_h=4.0, width=1, cold_start_h=0.25)
    assert 2.0 * 2.0 < bound <= 2.0 * 2.25


def test_the_bound_of_no_spot_at_all_is_on_demand() -> None:
    bound = cheapest_usd(trace("0" * 8), work_h=2.0, deadline_h=2.5, width=1, cold_start_h=0.25)
    assert 10 * 2.0 < bound <= 10 * 2.25


def test_the_bound_of_what_cannot_be_done_is_infinite() -> None:
    assert cheapest_usd(trace("11"), work_h=2.0, deadline_h=1.0, width=1, cold_start_h=0.0) == float("inf")


def test_all_policies_of_a_comparison_play_the_same_windows() -> None:
    found = compare([make_trace(3, days=6)], Limits(), work_h=12, deadlines=(1.5,), windows=3, history_h=6)
    ours, greedy = found.row("prebake", 1.5), found.row("spot greedy", 1.5)
    assert 1 <= ours.cost_over_oracle < found.row("on demand", 1.5).cost_over_oracle
    assert greedy.cost_over_oracle >= 1
    assert sum(row.missed for row in found.rows) == 0
    assert found.row("on demand", 1.5).cost_over_on_demand == pytest.approx(1)


def test_a_trace_too_short_for_the_job_is_refused() -> None:
    with pytest.raises(InputError, match="too short"):
        choose([make_trace(1, days=1)], Job(24, 36), 1, 0, 0)
