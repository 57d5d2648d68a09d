"""How long spot capacity lasts, learnt while watching: preemption rates by zone and by how long it has been up.

In: what is available, tick by tick. Out: a ``Forecast`` of remaining lives and of how much work a zone will yield.

Spot capacity that has lasted tends to last (Can't Be Late, NSDI'24, section 3; SkyNomad, arXiv 2601.06520, section 3),
so the preemption rate is kept by age. A zone that has been seen little borrows from all zones, and all zones from a
prior, each worth one preemption (the gamma-Poisson posterior mean), so nothing needs to be tuned to a cloud.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from capacity.trace import Floats, Ints

# Ages at which a new rate begins, in hours, and the prior's preemptions per hour in each: about 1 / (2 * age).
_AGES_H = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0])
_PRIOR_PER_H = np.array([1.0, 0.6, 0.35, 0.2, 0.1, 0.05])
_PRIOR_RECOVERY_PER_H = 0.5
# Ages at which a machine may be started, in hours; a zone that is older counts as the last.
_GRID_H = np.array([0, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24])
_STEPS_H = np.diff(_GRID_H)


@dataclass(frozen=True, eq=False)
class Lifetimes:
    """What has been seen of each zone so far; ``observe`` gives the next state, this one stays as it is."""

    age_h: Floats
    """How long each zone has been up (0: down), as far as it was watched."""
    up_h: Floats
    """Hours seen, by zone and age."""
    preemptions: Floats
    """Ends of availability seen, by zone and age."""
    down_h: Floats
    recoveries: Floats

    @classmethod
    def unknown(cls, zones: int) -> Lifetimes:
        """Nothing seen yet."""
        table, row = np.zeros((zones, len(_AGES_H))), np.zeros(zones)
        return cls(row, table, table, row, row)

    def observe(self, available: Ints, tick_h: float) -> Lifetimes:
        """The state one tick later, after seeing what is available in it."""
        up = available > 0
        was_up = self.age_h > 0
        zone, bucket = np.arange(len(up)), _bucket(self.age_h)
        up_h, preemptions = self.up_h.copy(), self.preemptions.copy()
        up_h[zone, bucket] += np.where(up & was_up, tick_h, 0)
        preemptions[zone, bucket] += was_up & ~up
        return replace(
            self,
            age_h=np.where(up, self.age_h + tick_h, 0),
            up_h=up_h,
            preemptions=preemptions,
            down_h=self.down_h + np.where(up, 0, tick_h),
            recoveries=self.recoveries + (up & ~was_up & (self.down_h > 0)),
        )

    def rates_per_h(self) -> Floats:
        """Preemptions per hour, by zone and age."""
        pooled = (self.preemptions.sum(0) + 1) / (self.up_h.sum(0) + 1 / _PRIOR_PER_H)
        return np.asarray((self.preemptions + 1) / (self.up_h + 1 / pooled))

    def recovery_h(self) -> Floats:
        """Expected hours that each zone stays away."""
        pooled = (self.recoveries.sum() + 1) / (self.down_h.sum() + 1 / _PRIOR_RECOVERY_PER_H)
        return np.asarray((self.down_h + 1 / pooled) / (self.recoveries + 1))

    def forecast(self, cold_start_h: float) -> Forecast:
        """What to expect of each zone, for a machine that needs ``cold_start_h`` before it works."""
        rates = self.rates_per_h()[:, _BUCKETS]
        survive = np.exp(-rates[:, :-1] * _STEPS_H)
        here = (1 - survive) / rates[:, :-1]
        lives = np.empty_like(rates)
        lives[:, -1] = 1 / rates[:, -1]
        for age in range(len(_GRID_H) - 2, -1, -1):
            lives[:, age] = here[:, age] + survive[:, age] * lives[:, age + 1]
        hazard = np.zeros_like(rates)
        np.cumsum(rates[:, :-1] * _STEPS_H, axis=1, out=hazard[:, 1:])
        below, part, beyond = _after(cold_start_h)
        above = np.minimum(below + 1, len(_GRID_H) - 1)
        risk = hazard[:, below] * (1 - part) + hazard[:, above] * part + rates[:, -1:] * beyond - hazard
        cold = cold_start_h * -np.expm1(-risk) / np.maximum(risk, 1e-12)
        worked = np.maximum(lives - cold, 0)
        now = _place(self.age_h)[0]
        reached = np.exp(-hazard)
        return Forecast(lives, worked, reached, self.recovery_h(), now, self.age_h > 0)


@dataclass(frozen=True, eq=False)
class Forecast:
    """Expectations by zone and age (a place in the grid of ages)."""

    life_h: Floats
    """Remaining hours of a zone that is up."""
    worked_h: Floats
    """Hours that a machine started now would work: what is left of the life after the cold start."""
    reached: Floats
    """Probability that a zone that comes up reaches that age."""
    away_h: Floats
    now: Ints
    """Each zone's age now."""
    up: np.typing.NDArray[np.bool_]

    def usd_per_work_h(self, usd: Floats, work_h: float) -> Floats:
        """Dollars per hour worked of a machine started at each age, the cold start spread over at most ``work_h``."""
        cold = self.life_h - self.worked_h
        return np.asarray(usd[:, None] * (1 + cold / np.maximum(np.minimum(self.worked_h, work_h), 1e-9)))

    def yield_h(
        self, cost: Floats, usd: Floats, worth: Floats, hot: np.typing.NDArray[np.bool_], hours: float
    ) -> Floats:
        """Hours that each zone will work in the next ``hours`` if started whenever ``cost`` is at most ``worth``;
        those that are ``hot`` work already, for their ``usd``.

        By worth and zone; renewal theory: first what is up now, then whole cycles of up and down.
        """
        zone = np.arange(len(cost))
        good = cost[None] <= worth[:, None, None]
        first = good.argmax(axis=2)
        ever = good.any(axis=2)
        per_cycle = np.where(ever, self.reached[zone, first] * self.worked_h[zone, first], 0)
        cycle = self.life_h[:, 0] + self.away_h
        start = np.maximum(first, self.now)
        chance = self.reached[zone, start] / self.reached[zone, self.now]
        this = np.where(ever, chance * self.worked_h[zone, start], 0)
        life = self.life_h[zone, self.now]
        this = np.where(hot & (usd <= worth[:, None]), life, this)
        gone = np.where(self.up, life, 0) + self.away_h
        rest = np.maximum(hours - gone, 0) * per_cycle / cycle
        return np.asarray(np.minimum(np.where(self.up, np.minimum(this, hours), 0) + rest, hours))


def _bucket(age_h: Floats) -> Ints:
    return np.asarray(np.searchsorted(_AGES_H, age_h + 1e-9, side="right") - 1, np.int32)


def _place(age_h: Floats) -> tuple[Ints, Floats, Floats]:
    """The last grid age at or before each age, how far it is to the next (0 to 1), and hours beyond the grid."""
    below = np.clip(np.searchsorted(_GRID_H, age_h + 1e-9, side="right") - 1, 0, len(_GRID_H) - 1)
    step = np.append(_STEPS_H, np.inf)[below]
    beyond = np.maximum(age_h - _GRID_H[-1], 0)
    return np.asarray(below, np.int32), np.clip((age_h - _GRID_H[below]) / step, 0, 1), beyond


@cache
def _after(cold_start_h: float) -> tuple[Ints, Floats, Floats]:
    return _place(_GRID_H + cold_start_h)


_BUCKETS = _bucket(_GRID_H)
