"""Decide: what becomes of one candidate, and which of the worthy ones a budget buys. Pure: no table, no clock.

In: what the window says of a fingerprint and what earlier nights made of it. Out: bake, keep or skip, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

import orjson

from prebake.prices import TokenPrice, online_price
from prebake.routes import Route
from prebake.settings import Plan, Settings
from tasks.screen import screen

HALF_LIFE_DAYS: Final = 7.0
"""A request of so many days ago counts half as much as one of the last day."""
NEXT_NIGHT: Final = timedelta(hours=36)
"""By then the next night has surely published: nights are daily, and twelve hours are long for one."""
BYTES_PER_TOKEN: Final = 4
"""For prompts whose log has no token counts: English prose under the usual tokenizers."""
TOOLS: Final = ("tools", "functions")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of one fingerprint; ``route`` None: the settings have no such route (any more).

    ``daily_rate`` in requests per day; ``blocked`` by a person; the token counts are means, None where the log has
    none; ``past_*`` is the newest row of the answers table, ``good_until`` (UTC) the latest expiry of what may be
    served.
    """

    route: Route | None
    requests: int
    users: int
    tenants: int
    turns: int
    daily_rate: float
    prompt_tokens: float | None
    completion_tokens: float | None
    request: str
    blocked: bool = False
    past_status: str | None = None
    past_model: str | None = None
    past_completion_tokens: int | None = None
    good_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One candidate's row in the plan; ``completion_tokens`` is the length expected of its answer."""

    decision: str
    reason: str
    expected_hits: float = 0.0
    value_usd: float = 0.0
    cost_usd: float = 0.0
    gpu_s: float = 0.0
    completion_tokens: float = 0.0


def recency_weights(days: Iterable[date], last: date) -> dict[date, float]:
    """The weight of each day's requests in the daily rate: 1 for the last day, half after ``HALF_LIFE_DAYS``."""
    return {day: 0.5 ** ((last - day).days / HALF_LIFE_DAYS) for day in days}


def expected_hits(daily_rate: float, ttl: timedelta) -> float:
    """Requests expected while an answer is good, if they keep coming at the rate of the window."""
    return daily_rate * (ttl / timedelta(days=1))


def judge(
    candidate: Candidate, settings: Settings, *, now: datetime, routes: Sequence[str] | None, redo: bool
) -> Verdict:
    """What to do with one candidate before any budget is looked at; the first rule that holds gives the reason.

    ``routes``: the only routes to bake for (None: all); ``redo``: bake what is fresh, and what failed before, again.
    """
    route = candidate.route
    if route is None or not route.enabled:
        return Verdict("skip", "route off")
    if routes and route.name not in routes:
        return Verdict("skip", "route not chosen")
    hits = expected_hits(candidate.daily_rate, route.ttl)
    if candidate.blocked:
        return Verdict("skip", "blocked", hits)
    if not redo and is_fresh(candidate.good_until, route.ttl, now):
        return Verdict("keep", "fresh", hits)
    reason = _unwanted(candidate, route) or screen(candidate.request, route, settings.screen)
    if reason is not None:
        return Verdict("skip", reason, hits)
    request = orjson.loads(candidate.request)
    limit = request["params"].get("max_tokens", route.night.max_tokens)
    reason = _hopeless(candidate, request, route, limit, settings.engine.model, redo=redo)
    if reason is not None:
        return Verdict("skip", reason, hits)
    return _weigh(candidate, request["model"], limit, hits, settings)


def is_fresh(good_until: datetime | None, ttl: timedelta, now: datetime) -> bool:
    """Whether an answer lasts until the next night has published; one that lives shorter is fresh for half its life."""
    return good_until is not None and good_until > now + min(NEXT_NIGHT, ttl / 2)


def _unwanted(candidate: Candidate, route: Route) -> str | None:
    if candidate.turns > 1 and not route.multi_turn:
        return "conversation"
    if candidate.requests < route.min_count:
        return "below min_count"
    if candidate.users < route.min_users:
        return "below min_users"
    if max(candidate.tenants, 1) < route.min_tenants:  # all who name no tenant may be one
        return "below min_tenants"
    return None


def _hopeless(
    candidate: Candidate, request: Mapping[str, Any], route: Route, limit: int, model: str, *, redo: bool
) -> str | None:
    """Why the engine would not answer it, or would not answer it any better than it did."""
    params = request["params"]
    if any(name in params for name in TOOLS) and params.get("tool_choice") != "none":
        return "tools"
    if redo or candidate.past_model != model or candidate.good_until is not None:
        return None
    if candidate.past_status == "refused":
        return "refused before"
    if candidate.past_status == "truncated" and not route.serve_truncated:
        return "cut off before" if limit <= (candidate.past_completion_tokens or 0) else None
    return None


def _weigh(candidate: Candidate, model: str, limit: int, hits: float, settings: Settings) -> Verdict:
    """Value and cost. A model without a price is taken to cost online what the night costs."""
    prompt_tokens = candidate.prompt_tokens or len(candidate.request) / BYTES_PER_TOKEN
    completion_tokens = min(candidate.completion_tokens or limit, limit)
    gpu = settings.prices.gpu
    gpu_s = gpu.seconds(prompt_tokens, completion_tokens)
    cost_usd = gpu.usd(gpu_s)
    price = price_of(model, settings)
    value_usd = hits * (cost_usd if price is None else price.usd(prompt_tokens, completion_tokens))
    if value_usd < cost_usd:
        return Verdict("skip", "not worth it", hits, value_usd, cost_usd, gpu_s, completion_tokens)
    reason = "new" if candidate.good_until is None else "expires"
    return Verdict("bake", reason, hits, value_usd, cost_usd, gpu_s, completion_tokens)


def price_of(model: str, settings: Settings) -> TokenPrice | None:
    """The online price of a model by the name in requests: its own, else that of a name it stands for."""
    names = (model, *settings.aliases.get(model, ()))
    prices = (online_price(settings.prices.online, name) for name in names)
    return next((price for price in prices if price is not None), None)


def choose(worthy: Sequence[Verdict], budget: Plan) -> list[bool]:
    """Which of them the budget buys: most value first per unit of what is scarcest, as long as each still fits.

    Greedy, which is off the best choice by less than one answer's value (Dantzig, "Discrete-Variable Extremum
    Problems", 1957), as answers are small beside any budget. Never more than any of the given budgets.
    """
    limits = [
        (budget.budget_usd, [verdict.cost_usd for verdict in worthy]),
        (budget.budget_gpu_s, [verdict.gpu_s for verdict in worthy]),
        (budget.budget_answers, [1.0] * len(worthy)),
    ]
    given = [(limit, spends) for limit, spends in limits if limit is not None]
    if not given:
        return [True] * len(worthy)
    if any(limit == 0 for limit, _ in given):
        return [False] * len(worthy)
    _, scarcest = min(given, key=lambda budget: budget[0] / max(sum(budget[1]), 1e-300))
    order = sorted(range(len(worthy)), key=lambda i: worthy[i].value_usd / max(scarcest[i], 1e-300), reverse=True)
    left = [limit for limit, _ in given]
    chosen = [False] * len(worthy)
    for i in order:
        rest = [limit - spends[i] for limit, (_, spends) in zip(left, given, strict=True)]
        if min(rest) >= 0:
            chosen[i], left = True, rest
    return chosen
