"""The policy: how many machines in which zones now, on spot or on demand. One pure function of what is known now.

In: a ``View`` (time left, work left, offers, machines, what was learnt of lifetimes) and the ``Limits``. Out: a
``Fleet`` to have. Three rules, in this order:

1. *The line.* As long as ``max_machines`` on-demand machines, all started one decision later, would still finish in
   time, nothing on demand is bought; at the line just as many as keep it. So the deadline holds whatever spot does.
2. *The going rate.* What an hour of work needs to cost at most for the rest of the job to get done: the least price
   at which the zones' expected yield covers the work left. Zones dearer than that (cold start and expected life
   counted in) are left alone, so with time in hand only the best are used, in as many as that takes at once.
3. *The budget.* Nothing runs that the budget cannot pay until the next decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np

from capacity.lifetimes import Forecast, Lifetimes
from capacity.trace import Floats, Ints

_RATES = 32


@dataclass(frozen=True)
class Machine:
    """One that runs."""

    zone: int
    on_demand: bool
    cold_h: float
    """Hours until it works; 0: it does."""


@dataclass(frozen=True, eq=False)
class View:
    """What is known when deciding. Work is in hours of a machine of speed 1; for tokens, divide by tokens per hour."""

    left_h: float
    """Hours to the deadline."""
    work_h: float
    """Work left."""
    step_h: float
    """Hours until the next decision."""
    available: Ints
    """Spot machines to be had by zone, those that run included."""
    spot_usd: Floats
    on_demand_usd: Floats
    speed: Floats
    machines: tuple[Machine, ...]
    seen: Lifetimes
    total_h: float = 0.0
    """All the work of the job; only the line of Uniform Progress asks for it, and for the next."""
    deadline_h: float = inf
    """Hours from the job's start to its deadline."""
    budget_usd: float = inf
    """Dollars left to spend."""


@dataclass(frozen=True)
class Limits:
    """What the user sets."""

    max_machines: int = 4
    cold_start_h: float = 0.2
    lost_h: float = 5 / 3600
    """Work lost when a machine is taken without notice."""
    caution: float = 1.0
    """How many times the work left the zones' expected yield must cover."""


@dataclass(frozen=True)
class Fleet:
    """How many machines to have, by zone."""

    spot: tuple[int, ...]
    on_demand: tuple[int, ...]

    @property
    def machines(self) -> int:
        """All of them."""
        return sum(self.spot) + sum(self.on_demand)


def decide(view: View, limits: Limits) -> Fleet:
    """The machines to have until the next decision; the same view always gives the same fleet."""
    zones = len(view.speed)
    if view.work_h <= 0 or view.left_h <= 0:
        return Fleet((0,) * zones, (0,) * zones)
    home = int(np.argmin(view.on_demand_usd / view.speed))
    bought = on_demand_needed(view, limits, home)
    spot = _spot(view, limits, limits.max_machines - bought)
    on_demand = [0] * zones
    on_demand[home] = bought
    return within_budget(Fleet(tuple(spot), tuple(on_demand)), view)


def on_demand_needed(view: View, limits: Limits, zone: int) -> int:
    """The fewest on-demand machines now that keep the deadline safe if no spot machine did another minute's work."""
    width, speed = limits.max_machines, float(view.speed[zone])
    running = sorted(machine.cold_h for machine in view.machines if machine.on_demand)
    at_risk = limits.lost_h * sum(not machine.on_demand for machine in view.machines)
    later = max(view.left_h - view.step_h - limits.cold_start_h, 0)
    for count in range(width):
        cold = [*running, *[limits.cold_start_h] * width][:count]
        surely = sum(max(view.left_h - wait, 0) for wait in cold) + (width - count) * later
        if surely * speed >= view.work_h + at_risk:
            return count
    return width


def _spot(view: View, limits: Limits, slots: int) -> list[int]:
    """Spot machines by zone: the cheapest of those at most as dear as the going rate."""
    counts = [0] * len(view.speed)
    if slots <= 0:
        return counts
    usd = view.spot_usd / view.speed
    forecast = view.seen.forecast(limits.cold_start_h)
    running = np.bincount([machine.zone for machine in view.machines if not machine.on_demand], minlength=len(usd))
    rate = going_rate(view, limits, forecast, usd, running > 0, slots)
    cold = (forecast.life_h - forecast.worked_h)[np.arange(len(usd)), forecast.now]
    worked = forecast.worked_h[np.arange(len(usd)), forecast.now]
    slot_usd = _slot_usd(view, limits, usd, forecast)
    while sum(counts) < slots:
        share = view.work_h / (sum(counts) + 1)
        start = usd + (usd + slot_usd) * cold / np.maximum(np.minimum(worked, share), 1e-9)
        cost = np.where(running > counts, usd, start)
        cost = np.where(view.available > counts, cost, inf)
        best = int(cost.argmin())
        if cost[best] > rate + slot_usd:
            break
        counts[best] += 1
    return counts


def _slot_usd(view: View, limits: Limits, usd: Floats, forecast: Forecast) -> float:
    """What an hour of a machine's time is worth beside its price: how much it helps against running out of slack.

    Each preemption costs slack: a cold start and the wait for the next decision. The chance that the work left costs
    more slack than there is has a bound that assumes nothing of how outages fall (Cantelli's inequality; the variance
    is that of a Poisson number of preemptions). If it comes to that, half of the work on average is still left and is
    bought on demand; spread over the slack, that is what an hour of it is worth.
    """
    each = limits.cold_start_h + view.step_h
    slack = max(limits.max_machines * (view.left_h - each) - view.work_h, each)
    up = view.available > 0
    ends_per_h = float((1 / forecast.life_h[np.arange(len(usd)), forecast.now][up]).mean()) if up.any() else 0.0
    lost = view.work_h * ends_per_h * each
    variance = lost * each
    chance = variance / (variance + (slack - lost) ** 2) if slack > lost else 1.0
    dearer = max(float((view.on_demand_usd / view.speed).min() - usd.min()), 0)
    return dearer * chance * view.work_h / (2 * slack)


def going_rate(
    view: View, limits: Limits, forecast: Forecast, usd: Floats, hot: np.typing.NDArray[np.bool_], slots: int
) -> float:
    """The least dollars per hour of work at which the zones' expected yield covers the work left, with caution."""
    dearest = float((view.on_demand_usd / view.speed).min()) * (1 + limits.cold_start_h / max(view.work_h, view.step_h))
    worth = np.geomspace(usd.min(), max(dearest, usd.min() * 1.001), _RATES)
    cost = forecast.usd_per_work_h(usd, view.work_h)
    hours = max(view.left_h - limits.cold_start_h - view.step_h, view.step_h)
    busy = forecast.yield_h(cost, usd, worth, hot, hours) / hours
    machines = np.clip(view.available, 1, slots)
    expected = _at_most(np.repeat(busy, machines, axis=1), slots) * hours
    enough = expected >= view.work_h * limits.caution
    return float(worth[enough.argmax()]) if enough.any() else dearest


def _at_most(busy: Floats, slots: int) -> Floats:
    """Expected number of busy zones, counted up to ``slots``: zones are busy independently (Poisson-binomial)."""
    chance = np.zeros((len(busy), slots + 1))
    chance[:, 0] = 1
    for column in busy.T:
        moved = chance * column[:, None]
        chance -= moved
        chance[:, 1:] += moved[:, :-1]
        chance[:, -1] += moved[:, -1]
    return np.asarray(chance @ np.arange(slots + 1.0))


def within_budget(fleet: Fleet, view: View) -> Fleet:
    """The fleet without what the budget cannot pay until the next decision: the dearest for its work goes first."""
    spot, on_demand = list(fleet.spot), list(fleet.on_demand)
    while True:
        price = np.concatenate([view.spot_usd, view.on_demand_usd])
        counts = np.array([*spot, *on_demand])
        if float(price @ counts) * view.step_h <= view.budget_usd or not counts.any():
            return Fleet(tuple(spot), tuple(on_demand))
        worst = int(np.where(counts > 0, price / np.tile(view.speed, 2), -inf).argmax())
        target, zone = (spot, worst) if worst < len(spot) else (on_demand, worst - len(spot))
        target[zone] -= 1
