"""The policy: what it may never do, and what it does at the edges."""

from __future__ import annotations

import dataclasses
from math import inf

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from capacity.lifetimes import Lifetimes
from capacity.policy import Limits, Machine, View, decide, on_demand_needed


def view(
    work_h: float = 8,
    left_h: float = 12,
    available: tuple[int, ...] = (1, 1, 1),
    spot_usd: tuple[float, ...] = (2.0, 3.0, 4.0),
    machines: tuple[Machine, ...] = (),
    budget_usd: float = inf,
    seen_ticks: int = 0,
) -> View:
    """A moment of a job in three zones at 10 dollars on demand."""
    seen = Lifetimes.unknown(len(available))
    for _ in range(seen_ticks):
        seen = seen.observe(np.array(available, np.int32), 1 / 6)
    return View(
        left_h=left_h,
        work_h=work_h,
        step_h=1 / 6,
        available=np.array(available, np.int32),
        spot_usd=np.array(spot_usd),
        on_demand_usd=np.full(len(available), 10.0),
        speed=np.ones(len(available)),
        machines=machines,
        seen=seen.observe(np.array(available, np.int32), 1 / 6),
        budget_usd=budget_usd,
    )


views = st.builds(
    view,
    work_h=st.floats(0, 200),
    left_h=st.floats(0, 100),
    available=st.tuples(*[st.integers(0, 5)] * 3),
    spot_usd=st.tuples(*[st.floats(0.01, 50)] * 3),
    machines=st.lists(st.builds(Machine, st.integers(0, 2), st.booleans(), st.floats(0, 0.2)), max_size=4).map(tuple),
    budget_usd=st.one_of(st.just(inf), st.floats(0, 20)),
    seen_ticks=st.integers(0, 20),
)
limits = st.builds(Limits, max_machines=st.integers(1, 8), cold_start_h=st.floats(0, 0.5), caution=st.floats(1, 3))


@settings(max_examples=200, deadline=None)
@given(view=views, limits=limits)
def test_a_fleet_is_never_wider_than_allowed_nor_more_than_a_zone_has(view: View, limits: Limits) -> None:
    fleet = decide(view, limits)
    assert fleet.machines <= limits.max_machines
    assert all(0 <= wanted <= there for wanted, there in zip(fleet.spot, view.available, strict=True))
    assert min(fleet.on_demand) >= 0


@settings(max_examples=200, deadline=None)
@given(view=views, limits=limits)
def test_a_fleet_never_costs_more_until_the_next_decision_than_the_budget_has(view: View, limits: Limits) -> None:
    fleet = decide(view, limits)
    usd_per_h = float(np.dot(fleet.spot, view.spot_usd) + np.dot(fleet.on_demand, view.on_demand_usd))
    assert usd_per_h * view.step_h <= view.budget_usd


@settings(max_examples=50, deadline=None)
@given(view=views, limits=limits)
def test_the_same_view_always_gives_the_same_fleet(view: View, limits: Limits) -> None:
    assert decide(view, limits) == decide(view, limits)


@settings(max_examples=100, deadline=None)
@given(view=views, limits=limits)
def test_no_work_needs_no_machines(view: View, limits: Limits) -> None:
    assert decide(dataclasses.replace(view, work_h=0.0), limits).machines == 0


@settings(max_examples=200, deadline=None)
@given(view=views, limits=limits)
def test_less_time_never_needs_fewer_on_demand_machines(view: View, limits: Limits) -> None:
    sooner = dataclasses.replace(view, left_h=view.left_h * 0.9)
    assert on_demand_needed(sooner, limits, 0) >= on_demand_needed(view, limits, 0)


def test_nothing_is_bought_on_demand_while_it_can_wait_for_the_next_decision() -> None:
    assert on_demand_needed(view(work_h=8, left_h=8.5), Limits(max_machines=1), 0) == 0


def test_on_demand_is_bought_when_waiting_for_the_next_decision_would_miss_the_deadline() -> None:
    fleet = decide(view(work_h=8, left_h=8.3), Limits(max_machines=1))
    assert sum(fleet.on_demand) == 1
    assert sum(fleet.spot) == 0


def test_only_as_many_on_demand_machines_are_bought_as_keep_the_deadline() -> None:
    # 4 machines later do 4 * (8 - 1/6 - 0.2) = 30.53 h; one started now adds its 1/6 h.
    assert on_demand_needed(view(work_h=30.5, left_h=8), Limits(max_machines=4, lost_h=0), 0) == 0
    assert on_demand_needed(view(work_h=30.6, left_h=8), Limits(max_machines=4, lost_h=0), 0) == 1
    assert on_demand_needed(view(work_h=30.8, left_h=8), Limits(max_machines=4, lost_h=0), 0) == 2


def test_an_on_demand_machine_that_keeps_the_deadline_is_kept() -> None:
    running = (Machine(0, on_demand=True, cold_h=0.0),)
    assert on_demand_needed(view(work_h=7.9, left_h=8.1, machines=running), Limits(max_machines=1), 0) == 1


def test_with_time_in_hand_only_the_cheapest_zone_is_used() -> None:
    fleet = decide(view(work_h=8, left_h=60, seen_ticks=100), Limits(max_machines=3))
    assert fleet.spot == (1, 0, 0)


def test_short_of_time_dearer_zones_are_used_too() -> None:
    fleet = decide(view(work_h=20, left_h=8, seen_ticks=100), Limits(max_machines=3))
    assert fleet.spot == (1, 1, 1)


def test_with_time_in_hand_it_waits_for_a_cheap_zone_that_is_away() -> None:
    seen = Lifetimes.unknown(2)
    for tick in range(600):  # both come and go; the cheap one is away for an hour a day
        seen = seen.observe(np.array([tick % 144 < 138, 1], np.int32), 1 / 6)
    moment = dataclasses.replace(
        view(work_h=4, left_h=60, available=(0, 1), spot_usd=(2.0, 8.0)),
        seen=seen.observe(np.array([0, 1], np.int32), 1 / 6),
    )
    assert decide(moment, Limits()).machines == 0


def test_a_machine_that_works_is_not_left_for_one_that_is_hardly_cheaper() -> None:
    running = (Machine(1, on_demand=False, cold_h=0.0),)
    moment = view(work_h=2, left_h=12, spot_usd=(2.95, 3.0, 4.0), machines=running, seen_ticks=50)
    assert decide(moment, Limits(max_machines=1)).spot == (0, 1, 0)


def test_a_faster_machine_type_wins_when_its_work_is_cheaper() -> None:
    moment = dataclasses.replace(view(left_h=60, spot_usd=(2.0, 3.0, 4.0), seen_ticks=50), speed=np.array([1.0, 2, 1]))
    assert decide(moment, Limits(max_machines=1)).spot == (0, 1, 0)


def test_a_budget_of_nothing_runs_nothing() -> None:
    assert decide(view(work_h=8, left_h=8, budget_usd=0), Limits()).machines == 0
