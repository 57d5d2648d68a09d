"""The policy at work: looks at the Auto Scaling groups of each zone, decides, and sets how many machines each has.

In: work and time left, the zones' groups and prices. Out: groups scaled, from zero and back to it. What it knows beside
that is only for better guesses (``Lifetimes``, cold starts): one that was killed and started again goes on from what
the groups have.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Final

import numpy as np

from capacity.fleet import Fleet as AutoScaling
from capacity.fleet import Group
from capacity.lifetimes import Lifetimes
from capacity.policy import Fleet, Limits, Machine, View, decide
from capacity.prices import PriceError, list_price, spot_prices
from capacity.trace import Floats
from prebake.errors import SettingsError
from prebake.settings import Zone

_PATIENCE: Final = 2  # decisions until a group that does not fill is taken to have nothing
_REST: Final = 5  # decisions until such a group is asked again
_NEVER_USD: Final = 1e6  # no on-demand machines in that zone

_logger = logging.getLogger(__name__)


@dataclass
class _ZoneState:
    """What was seen of one zone's spot group."""

    machines: frozenset[str] = frozenset()
    desired: int = 0
    unfilled: int = 0
    resting: int = 0
    usd: float | None = None


@dataclass
class Controller:
    """Keeps the zones' groups as the policy wants them. ``autoscaling`` and ``ec2`` are boto3's clients."""

    zones: Sequence[Zone]
    limits: Limits
    region: str | None = None
    autoscaling: Any = None
    ec2: Any = None
    clock: Callable[[], float] = time.monotonic
    spent_usd: float = 0.0
    """What the machines cost since this controller began, at the prices seen."""
    _states: list[_ZoneState] = field(init=False)
    _born: dict[str, float] = field(init=False, default_factory=dict)
    _last: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_zones(self.zones)
        self._states = [_ZoneState() for _ in self.zones]
        self._seen = Lifetimes.unknown(len(self.zones))
        names = {name for zone in self.zones for name in (zone.spot_group, zone.on_demand_group) if name}
        self._groups = {name: AutoScaling(name, region=self.region, client=self.autoscaling) for name in sorted(names)}
        self._on_demand_usd = np.array([_on_demand_usd(zone) for zone in self.zones])

    def step(self, *, work_h: float, left_h: float, step_h: float, most: int, budget_usd: float = inf) -> Fleet:
        """Look, decide and scale once. ``most`` machines find work; ``budget_usd`` is left until the deadline.

        Raises FleetError, SettingsError where AWS refuses or has no such group.
        """
        groups = {name: group.group() for name, group in self._groups.items()}
        spot_usd = self._spot_usd()
        available = np.array([self._look(place, groups) for place in range(len(self.zones))], np.int32)
        machines = self._machines(groups)
        self._spend(machines, spot_usd)
        view = View(
            left_h=left_h,
            work_h=work_h,
            step_h=step_h,
            available=available,
            spot_usd=spot_usd,
            on_demand_usd=self._on_demand_usd,
            speed=np.array([zone.speed for zone in self.zones]),
            machines=machines,
            seen=self._seen,
            budget_usd=budget_usd,
        )
        wanted = decide(view, replace(self.limits, max_machines=min(self.limits.max_machines, max(most, 1))))
        for place, zone in enumerate(self.zones):
            self._scale(zone.on_demand_group, wanted.on_demand[place])
            self._states[place].desired = self._scale(zone.spot_group, wanted.spot[place])
        return wanted

    def machines(self) -> int:
        """Machines that run or are asked for, in all groups."""
        return sum(max(found.desired, found.in_service) for found in (g.group() for g in self._groups.values()))

    def stop(self) -> None:
        """Every group to zero."""
        for name in self._groups:
            self._scale(name, 0)

    def _scale(self, name: str, machines: int) -> int:
        return self._groups[name].scale(machines) if name else 0

    def _look(self, place: int, groups: dict[str, Group]) -> int:
        """Spot machines to be had in the zone, as far as its group lets one see."""
        zone, state = self.zones[place], self._states[place]
        if not zone.spot_group:
            return 0
        group = groups[zone.spot_group]
        taken = len(state.machines - set(group.machines)) > max(len(state.machines) - state.desired, 0)
        state.unfilled = state.unfilled + 1 if group.in_service < min(group.desired, state.desired) else 0
        state.resting = max(state.resting - 1, 0)
        if state.unfilled >= _PATIENCE:
            state.unfilled, state.resting = 0, _REST
            _logger.warning("zone %s: group %s has no more spot machines to give", zone.name, group.name)
        state.machines = frozenset(group.machines)
        self._observe(place, 0 if taken or (state.resting and not group.in_service) else 1)
        return group.in_service if state.resting else group.most

    def _observe(self, place: int, up: int) -> None:
        """Collect what each zone showed; with the last zone the tick is complete."""
        if place == 0:
            self._ups = np.zeros(len(self.zones), np.int32)
        self._ups[place] = up

    def _machines(self, groups: dict[str, Group]) -> tuple[Machine, ...]:
        """Those that run, with what is left of their cold start; who ran before this controller did is warm."""
        now = self.clock()
        found = []
        for place, zone in enumerate(self.zones):
            for name, on_demand in ((zone.spot_group, False), (zone.on_demand_group, True)):
                for machine in groups[name].machines if name else ():
                    born = self._born.setdefault(machine, -inf if self._last is None else now)
                    cold_h = max(self.limits.cold_start_h - (now - born) / 3600, 0.0)
                    found.append(Machine(place, on_demand, cold_h))
        return tuple(found)

    def _spend(self, machines: tuple[Machine, ...], spot_usd: Floats) -> None:
        now = self.clock()
        hours = 0.0 if self._last is None else (now - self._last) / 3600
        usd_per_h = sum(float((self._on_demand_usd if m.on_demand else spot_usd)[m.zone]) for m in machines)
        self.spent_usd += usd_per_h * hours
        if hours:
            self._seen = self._seen.observe(self._ups, hours)
        self._last = now

    def _spot_usd(self) -> Floats:
        """Dollars per hour in each zone: as set, else as AWS has it now, else as it had it last."""
        unpriced = (zone for zone in self.zones if zone.spot_group and zone.spot_usd is None)
        for region, types in types_by_region(unpriced).items():
            try:
                live = {
                    (price.machine_type, price.zone): price.usd
                    for price in spot_prices(sorted(types), region, client=self.ec2)
                }
            except PriceError as error:
                _logger.warning("%s; going on with the prices before", error)
                continue
            for zone, state in zip(self.zones, self._states, strict=True):
                state.usd = live.get((zone.machine_type, zone.name), state.usd)
        unknown = self._on_demand_usd.min()
        return np.array(
            [zone.spot_usd or state.usd or unknown for zone, state in zip(self.zones, self._states, strict=True)]
        )


def check_zones(zones: Sequence[Zone]) -> None:
    """SettingsError where the zones cannot keep a deadline, or a price is missing."""
    if not any(zone.on_demand_group for zone in zones):
        raise SettingsError(
            "capacity.zones: no zone has an on_demand_group; without one a deadline cannot be kept when spot is gone"
        )
    for zone in zones:
        if zone.spot_group and zone.spot_usd is None and not zone.machine_type:
            raise SettingsError(f"capacity.zones: {zone.name}: give its machine_type, so that prices can be asked")
        _on_demand_usd(zone)


def _on_demand_usd(zone: Zone) -> float:
    if not zone.on_demand_group:
        return _NEVER_USD
    return zone.on_demand_usd or list_price(zone.machine_type, region_of(zone)).on_demand_usd


def region_of(zone: Zone) -> str:
    """The AWS region of a zone: us-east-2 of us-east-2a."""
    return zone.name.rstrip("abcdefghijklmnopqrstuvwxyz")


def types_by_region(zones: Iterable[Zone]) -> dict[str, set[str]]:
    """The machine types of the zones by their AWS region."""
    found: dict[str, set[str]] = {}
    for zone in zones:
        found.setdefault(region_of(zone), set()).add(zone.machine_type)
    return found
