"""Decisions and budgets, as properties."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.prices import TokenPrice
from prebake.routes import Night, Route
from prebake.settings import Plan, Prices, Settings
from tasks.decide import (
    HALF_LIFE_DAYS,
    Candidate,
    Verdict,
    choose,
    expected_hits,
    is_fresh,
    judge,
    price_of,
    recency_weights,
)

NOW = datetime(2026, 3, 11, tzinfo=UTC)
ROUTE = Route(name="faq", night=Night(max_tokens=100))
SETTINGS = Settings(prices=Prices(online={"gpt*": TokenPrice(input_usd_per_million=1, output_usd_per_million=4)}))

amounts = st.floats(0.001, 1000)
verdicts = st.lists(
    st.builds(Verdict, st.just("bake"), st.just("new"), amounts, amounts, amounts, amounts), max_size=30
)
limits = st.none() | st.floats(0, 5000)
budgets = st.builds(Plan, budget_usd=limits, budget_gpu_s=limits, budget_answers=st.none() | st.integers(0, 40))


def candidate(**values: object) -> Candidate:
    request = {"messages": [{"role": "user", "content": "How?"}], "model": "gpt", "params": values.pop("params", {})}
    known = {"route": ROUTE, "requests": 9, "users": 5, "tenants": 2, "turns": 1, "daily_rate": 2.0}
    tokens = {"prompt_tokens": 10.0, "completion_tokens": 50.0, "request": orjson.dumps(request).decode()}
    return Candidate(**(known | tokens | values))


def verdict(known: Candidate, settings: Settings = SETTINGS) -> Verdict:
    return judge(known, settings, now=NOW, routes=None, redo=False)


@given(verdicts, budgets)
def test_no_budget_is_ever_exceeded(worthy: list[Verdict], budget: Plan) -> None:
    bought = [v for v, yes in zip(worthy, choose(worthy, budget), strict=True) if yes]
    slack = 1 + 1e-9
    if budget.budget_usd is not None:
        assert sum(v.cost_usd for v in bought) <= budget.budget_usd * slack
    if budget.budget_gpu_s is not None:
        assert sum(v.gpu_s for v in bought) <= budget.budget_gpu_s * slack
    if budget.budget_answers is not None:
        assert len(bought) <= budget.budget_answers


@given(verdicts, budgets)
def test_nothing_that_still_fits_is_left_out(worthy: list[Verdict], budget: Plan) -> None:
    chosen = choose(worthy, budget)
    bought = [v for v, yes in zip(worthy, chosen, strict=True) if yes]
    if 0 in (budget.budget_usd, budget.budget_gpu_s, budget.budget_answers):
        assert not bought
        return
    for left in (v for v, yes in zip(worthy, chosen, strict=True) if not yes):
        assert (
            (budget.budget_usd is not None and sum(v.cost_usd for v in [*bought, left]) > budget.budget_usd * 0.999999)
            or (
                budget.budget_gpu_s is not None
                and sum(v.gpu_s for v in [*bought, left]) > budget.budget_gpu_s * 0.999999
            )
            or (budget.budget_answers is not None and len(bought) + 1 > budget.budget_answers)
        )


@given(verdicts, st.integers(1, 30))
def test_a_number_of_answers_buys_the_most_valuable(worthy: list[Verdict], answers: int) -> None:
    chosen = choose(worthy, Plan(budget_answers=answers))
    bought = sum(v.value_usd for v, yes in zip(worthy, chosen, strict=True) if yes)
    assert bought == pytest.approx(sum(sorted((v.value_usd for v in worthy), reverse=True)[:answers]))


def test_without_a_budget_everything_worthy_is_baked() -> None:
    assert choose([Verdict("bake", "new", 1, 1, 1, 1)] * 3, Plan()) == [True] * 3


def test_a_request_of_a_half_life_ago_counts_half() -> None:
    last = date(2026, 3, 10)
    old = last - timedelta(days=HALF_LIFE_DAYS)
    assert recency_weights([old, last], last) == {old: 0.5, last: 1.0}


@given(st.floats(0, 1e6), st.integers(1, 100))
def test_expected_hits_grow_with_the_rate_and_the_time_to_live(rate: float, days: int) -> None:
    assert expected_hits(rate, timedelta(days=days)) == pytest.approx(rate * days)
    assert expected_hits(rate, timedelta(days=days)) <= expected_hits(rate + 1, timedelta(days=days + 1))


@pytest.mark.parametrize(
    ("ttl", "left", "fresh"),
    [
        (timedelta(days=7), timedelta(hours=37), True),
        (timedelta(days=7), timedelta(hours=35), False),
        (timedelta(hours=24), timedelta(hours=13), True),
        (timedelta(hours=24), timedelta(hours=11), False),
    ],
)
def test_an_answer_is_fresh_until_the_next_night_or_for_half_a_short_life(
    ttl: timedelta, left: timedelta, fresh: bool
) -> None:
    assert is_fresh(NOW + left, ttl, NOW) is fresh
    assert not is_fresh(None, ttl, NOW)


def test_the_longest_allowed_answer_is_assumed_where_the_log_has_no_counts() -> None:
    counted = verdict(candidate(completion_tokens=1000.0))
    uncounted = verdict(candidate(completion_tokens=None, prompt_tokens=10.0))
    asked_for_less = verdict(candidate(completion_tokens=None, params={"max_tokens": 5}))
    assert counted == uncounted
    assert asked_for_less.gpu_s < uncounted.gpu_s


def test_a_model_without_a_price_is_worth_baking_from_the_second_expected_hit() -> None:
    unpriced = Settings()
    assert verdict(candidate(daily_rate=2 / 7), unpriced).decision == "bake"
    assert verdict(candidate(daily_rate=0.5 / 7), unpriced).reason == "not worth it"


def test_an_alias_has_the_price_of_the_first_model_it_stands_for() -> None:
    settings = SETTINGS.model_copy(update={"aliases": {"fast": ("unknown", "gpt-mini")}})
    assert price_of("fast", settings) == SETTINGS.prices.online["gpt*"]
    assert price_of("unknown", settings) is None


def test_conversations_are_baked_where_the_route_says_so() -> None:
    assert verdict(candidate(turns=2)).reason == "conversation"
    assert verdict(candidate(turns=2, route=ROUTE.model_copy(update={"multi_turn": True}))).decision == "bake"


@pytest.mark.parametrize(("tenants", "reason"), [(0, "below min_tenants"), (1, "below min_tenants"), (2, "new")])
def test_a_shared_prompt_waits_for_as_many_tenants_as_its_route_wants(tenants: int, reason: str) -> None:
    wants_two = Route(name="faq", scope="shared", min_tenants=2)
    assert verdict(candidate(route=wants_two, tenants=tenants)).reason == reason
    assert verdict(candidate(route=Route(name="faq", scope="shared"), tenants=tenants)).reason == "new"


def test_tools_that_must_not_be_called_do_not_keep_a_prompt_from_being_baked() -> None:
    assert verdict(candidate(params={"tools": [{}]})).reason == "tools"
    assert verdict(candidate(params={"tools": [{}], "tool_choice": "none"})).decision == "bake"
