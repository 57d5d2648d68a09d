"""Made-up traces, seeded: zones that are up and down in stretches as real ones are, at prices as real ones have.

The law of the stretches is a choice, not a measurement: up times are log-normal (many short, a few very long, as in
the traces of Can't Be Late and SkyNomad), down times likewise, and now and then a shortage takes a whole region.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from capacity.trace import Trace

START = datetime(2026, 1, 1, tzinfo=UTC)


def make_trace(seed: int, *, zones: int = 9, days: float = 14, tick_s: float = 600) -> Trace:
    """A trace of ``zones`` zones in regions of three; the same seed makes the same trace."""
    random = np.random.default_rng(seed)
    tick_h = tick_s / 3600
    ticks = int(days * 24 / tick_h)
    regions = -(-zones // 3)
    on_demand = random.uniform(0.9, 1.2, regions) * 10
    discount = random.uniform(0.18, 0.5, regions)
    short = [_stretches(random, ticks, random.uniform(48, 160) / tick_h, 2 / tick_h) for _ in range(regions)]
    names, available, spot = [], [], []
    for zone in range(zones):
        region = zone // 3
        up_h, down_h = np.exp(random.uniform(np.log(1.5), np.log(16))), np.exp(random.uniform(np.log(0.4), np.log(3)))
        names.append(f"region{region + 1}-{'abc'[zone % 3]}")
        available.append(_stretches(random, ticks, up_h / tick_h, down_h / tick_h) & short[region])
        spot.append(np.full(ticks, on_demand[region] * discount[region] * random.uniform(0.97, 1.03)))
    return Trace(
        tuple(names),
        START,
        tick_h,
        np.asarray(available, np.int32).T,
        np.asarray(spot).T,
        np.repeat(on_demand, 3)[:zones],
        np.ones(zones),
    )


def _stretches(
    random: np.random.Generator, ticks: int, up_ticks: float, down_ticks: float
) -> np.typing.NDArray[np.bool_]:
    """Up and down in turn, with those means; log-normal with a standard deviation of about twice the mean."""
    sigma = 1.25
    state = bool(random.random() < up_ticks / (up_ticks + down_ticks))
    parts: list[np.typing.NDArray[np.bool_]] = []
    length = 0
    while length < ticks:
        mean = up_ticks if state else down_ticks
        stretch = max(round(random.lognormal(np.log(mean) - sigma**2 / 2, sigma)), 1)
        parts.append(np.full(stretch, state))
        length += stretch
        state = not state
    return np.concatenate(parts)[:ticks]
