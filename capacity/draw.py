"""A picture of one job in the simulator: machines by zone, price, and progress against the straight line."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display on a server

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from capacity.simulate import Job, Outcome
from capacity.trace import Floats, Trace

_ON_DEMAND, _LINE, _GRID = "#b2182b", "#777777", "#e4e4e4"


def draw(trace: Trace, job: Job, outcome: Outcome, file: Path, *, title: str = "") -> None:
    """Write the picture as PNG (or what the file's ending says)."""
    hours: Floats = np.arange(len(outcome.machines) + 1, dtype=np.float64) * trace.tick_h
    hours[-1] = outcome.hours
    figure, (zones, price, progress) = plt.subplots(
        3, 1, figsize=(11, 8), sharex=True, height_ratios=(4, 1.5, 3), layout="constrained"
    )
    _zones(zones, trace, outcome, hours)
    _price(price, trace, outcome, hours)
    _progress(progress, job, outcome, hours)
    spent = f"${outcome.usd:,.0f}, {outcome.starts} starts, {outcome.preemptions} preemptions, {outcome.hours:.1f} h"
    zones.set_title(f"{title + ': ' if title else ''}{spent}", loc="left", fontweight="bold")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _zones(axes: Axes, trace: Trace, outcome: Outcome, hours: Floats) -> None:
    """A line for each zone: pale where it had capacity, strong where machines ran."""
    order = np.argsort(-trace.spot_usd[: len(hours)].mean(axis=0), kind="stable")
    for row, zone in enumerate(order):
        spot = np.array([fleet.spot[zone] for fleet in outcome.machines])
        bought = np.array([fleet.on_demand[zone] for fleet in outcome.machines])
        for there, colour, height in (
            (trace.available[: len(spot), zone] > 0, "#d6e6f4", 0.8),
            (spot > 0, "#2166ac", 0.5),
            (bought > 0, _ON_DEMAND, 0.5),
        ):
            axes.broken_barh(_stretches(there, hours), (row - height / 2, height), color=colour, linewidth=0)
    labels = [f"{trace.zones[zone]}  ${trace.spot_usd[: len(hours), zone].mean():.2f}/h" for zone in order]
    axes.set_yticks(range(len(order)), labels, fontsize=8)
    names = ["available", "spot machine", "on demand"]
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in ("#d6e6f4", "#2166ac", _ON_DEMAND)]
    axes.legend(
        handles,
        names,
        loc="lower right",
        ncols=3,
        fontsize=8,
        bbox_to_anchor=(1, 1),
    )
    axes.tick_params(left=False)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _price(axes: Axes, trace: Trace, outcome: Outcome, hours: Floats) -> None:
    usd = [
        float(np.dot(fleet.spot, trace.spot_usd[tick]) + np.dot(fleet.on_demand, trace.on_demand_usd))
        for tick, fleet in enumerate(outcome.machines)
    ]
    axes.stairs(usd, hours, fill=True, color="#92c5de")
    axes.set_ylabel("$ per hour")
    _plain(axes)


def _progress(axes: Axes, job: Job, outcome: Outcome, hours: Floats) -> None:
    axes.plot(hours, [0, *outcome.done_h], color="#2166ac", linewidth=2, label="done")
    axes.plot([0, job.deadline_h], [0, job.work_h], color=_LINE, linestyle="--", linewidth=1, label="uniform progress")
    axes.axvline(job.deadline_h, color=_ON_DEMAND, linewidth=1.2)
    axes.annotate("deadline ", (job.deadline_h, 0.04 * job.work_h), ha="right", color=_ON_DEMAND, fontsize=8)
    axes.set(xlabel="hours since the start", ylabel="work done (machine-hours)", ylim=(0, job.work_h * 1.04))
    axes.set_xlim(0, job.deadline_h * 1.005)
    axes.legend(loc="upper left", fontsize=8)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _stretches(there: np.typing.NDArray[np.bool_], hours: Floats) -> list[tuple[float, float]]:
    """(begin, length) of each stretch of True, in hours."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]]).astype(int)))
    return [
        (float(hours[begin]), float(hours[end] - hours[begin]))
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]
