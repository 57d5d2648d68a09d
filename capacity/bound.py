"""The clairvoyant lower bound: what nobody could undercut who knew the whole trace beforehand.

The problem: buy machine runs (a zone, a beginning, an end, all of it available), at most ``width`` at a time; a run
of h hours costs its price and does speed * (h - cold_start_h) work; do all the work by the deadline; spend least.

The bound is its Lagrangian dual, so it is proven and never above the true optimum: give every unit of work the price
``worth`` and let each machine earn what it can; then  worth * work + least(cost - worth * work done)  is at most the
cost of any schedule that does the work. The inner minimum is exact by dynamic programming over ticks (within a tick
nothing changes, so runs may as well begin and end at ticks). Two relaxations of the width are tried, and the larger
bound holds: every zone for itself without the limit, or ``width`` machines that each go where they like without
regard to how many a zone has. Cold starts are in it; work lost at preemptions is not (it only adds cost).
"""

from __future__ import annotations

import numpy as np

from capacity.trace import Floats, Trace

_GRID = 24


def cheapest_usd(trace: Trace, *, work_h: float, deadline_h: float, width: int, cold_start_h: float) -> float:
    """Dollars that no schedule can undercut for ``work_h`` hours of speed-1 work by ``deadline_h``.

    Infinite where even ``width`` on-demand machines from the first moment are too slow.
    """
    if work_h <= 0:
        return 0.0
    if width * max(deadline_h - cold_start_h, 0) * trace.speed.max() < work_h * (1 - 1e-9):
        return float("inf")
    usd, speed, copies, hours = _columns(trace, deadline_h, width)
    price = usd / speed
    low, high = 0.0, float(price[np.isfinite(price)].max()) * (1 + cold_start_h * 4 / deadline_h) * 4
    best = 0.0
    for _ in range(3):
        worth = np.linspace(low, high, _GRID)
        apart = _apart(usd, speed, hours, worth, cold_start_h) @ copies
        together = width * _together(usd, speed, hours, worth, cold_start_h)
        bounds = worth * work_h + np.maximum(apart, together)
        top = int(bounds.argmax())
        best = max(best, float(bounds[top]))
        low, high = worth[max(top - 1, 0)], worth[min(top + 1, _GRID - 1)]
    return best


def _columns(trace: Trace, deadline_h: float, width: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Dollars per hour by tick and column (infinite: not to be had), speed and copies by column, hours by tick.

    A column is one machine of a zone: its first spot machine, its second ..., and its on-demand machines.
    """
    ticks = min(int(np.ceil(deadline_h / trace.tick_h - 1e-9)), trace.ticks)
    hours = np.full(ticks, trace.tick_h)
    hours[-1] = deadline_h - (ticks - 1) * trace.tick_h
    available, spot = trace.available[:ticks], trace.spot_usd[:ticks]
    layers = range(1, min(width, int(available.max(initial=1))) + 1)
    spots = [np.where(available >= layer, spot, np.inf) for layer in layers]
    on_demand = np.broadcast_to(trace.on_demand_usd, spot.shape)
    zones = len(trace.zones)
    copies = np.concatenate([np.ones(zones * len(spots)), np.full(zones, float(width))])
    return np.concatenate([*spots, on_demand], axis=1), np.tile(trace.speed, len(spots) + 1), copies, hours


def _apart(usd: Floats, speed: Floats, hours: Floats, worth: Floats, cold_start_h: float) -> Floats:
    """Least of (cost - worth * work) of each column alone, by worth and column."""
    start = np.outer(worth, speed) * cold_start_h
    earned = np.outer(worth, speed)
    off = np.zeros_like(start)
    on = np.full_like(start, np.inf)
    for dollars, hour in zip(usd, hours, strict=True):
        on = np.minimum(on, off + start) + (dollars - earned) * hour
        off = np.minimum(off, on)
    return off


def _together(usd: Floats, speed: Floats, hours: Floats, worth: Floats, cold_start_h: float) -> Floats:
    """Least of (cost - worth * work) of one machine that goes from column to column, by worth."""
    start = np.outer(worth, speed) * cold_start_h
    earned = np.outer(worth, speed)
    off = np.zeros(len(worth))
    on = np.full_like(start, np.inf)
    for dollars, hour in zip(usd, hours, strict=True):
        on = np.minimum(on, off[:, None] + start) + (dollars - earned) * hour
        off = np.minimum(off, on.min(axis=1))
    return off
