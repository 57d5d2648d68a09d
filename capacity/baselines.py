"""What others do, to compare with: on demand only, spot greedily, Uniform Progress.

Each is a policy like ours. They do not choose their width: with several machines allowed they run that many, which
share the work. All keep the deadline by the same safety net.
"""

from __future__ import annotations

import numpy as np

from capacity.policy import Fleet, Limits, View, on_demand_needed, within_budget


def on_demand_only(view: View, limits: Limits) -> Fleet:
    """As few on-demand machines as make the deadline, from the first moment to the last."""
    home = _home(view)
    running = sum(machine.on_demand for machine in view.machines)
    if running:
        needed = running
    else:
        each = max(view.left_h - limits.cold_start_h, 1e-9) * float(view.speed[home])
        needed = min(max(int(np.ceil(view.work_h / each - 1e-9)), 1), limits.max_machines)
    return _fleet(view, [], needed)


def spot_greedy(view: View, limits: Limits) -> Fleet:
    """The cheapest spot machines there are, kept until preempted; on demand at the last moment."""
    bought = on_demand_needed(view, limits, _home(view))
    return _fleet(view, _cheapest(view, limits.max_machines - bought), bought)


def uniform_progress(view: View, limits: Limits) -> Fleet:
    """Uniform Progress (Can't Be Late, NSDI'24) in many zones: spot where there is any, else on demand when behind.

    Its rules: take spot whenever it is there and keep it until it is preempted; without spot, buy on demand while
    progress is behind the straight line from nothing at the start to all at the deadline, and keep that until ahead
    of the line of two cold starts later; from the point of no return, on demand to the end.
    """
    width = limits.max_machines
    bought = on_demand_needed(view, limits, _home(view))
    spot = _cheapest(view, width - bought)
    idle = width - bought - len(spot)
    if idle > 0:
        running = sum(machine.on_demand for machine in view.machines)
        ahead_h = 2 * limits.cold_start_h if running else 0.0
        behind = view.work_h - view.total_h * max(1 - (view.deadline_h - view.left_h + ahead_h) / view.deadline_h, 0)
        if behind > 0:
            bought += idle
    return _fleet(view, spot, bought)


def _home(view: View) -> int:
    return int(np.argmin(view.on_demand_usd / view.speed))


def _cheapest(view: View, slots: int) -> list[int]:
    """Zones of the spot machines to have: those that run, then the cheapest."""
    usd = view.spot_usd / view.speed
    kept = [machine.zone for machine in view.machines if not machine.on_demand][: max(slots, 0)]
    room = view.available.copy()
    np.subtract.at(room, kept, 1)
    others = [int(zone) for zone in np.argsort(usd, kind="stable") for _ in range(max(int(room[zone]), 0))]
    return kept + others[: max(slots - len(kept), 0)]


def _fleet(view: View, spot: list[int], on_demand: int) -> Fleet:
    zones = len(view.speed)
    bought = [0] * zones
    bought[_home(view)] = on_demand
    return within_budget(Fleet(tuple(np.bincount(spot, minlength=zones).tolist()), tuple(bought)), view)
