"""Our policy beside the others and beside the clairvoyant bound, over many beginnings in a trace.

In: a trace and a job. Out: a ``Comparison``, which the command line and the benchmark print. All play the same windows
with the same work, width, cold start and billing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from capacity.baselines import on_demand_only, spot_greedy, uniform_progress
from capacity.bound import cheapest_usd
from capacity.policy import Limits, decide
from capacity.simulate import Job, Outcome, Policy, simulate
from capacity.trace import Trace
from prebake.errors import InputError

POLICIES: dict[str, Policy] = {
    "prebake": decide,
    "spot greedy": spot_greedy,
    "uniform progress": uniform_progress,
    "on demand": on_demand_only,
}


@dataclass(frozen=True)
class Row:
    """One policy at one deadline: means over the windows, unless it says otherwise."""

    policy: str
    deadline: float
    """Times the work."""
    usd: float
    cost_over_oracle: float
    """Its dollars over the clairvoyant bound's."""
    worst_over_oracle: float
    """The same of the worst window."""
    cost_over_on_demand: float
    missed: int
    """Windows whose deadline was missed."""
    tokens_twice_share: float
    """Work done twice over all work."""
    starts: float
    on_demand_h: float


@dataclass(frozen=True)
class Comparison:
    """What was played, and how each policy did."""

    windows: int
    zones: int
    work_h: float
    max_machines: int
    rows: tuple[Row, ...]

    def row(self, policy: str, deadline: float) -> Row:
        """One of the rows."""
        return next(row for row in self.rows if row.policy == policy and row.deadline == deadline)


@dataclass(frozen=True)
class Window:
    """A stretch of a trace to play, and what was recorded before it."""

    trace: Trace
    history: Trace | None


def compare(
    traces: Sequence[Trace],
    limits: Limits,
    *,
    work_h: float = 48,
    deadlines: Sequence[float] = (1.05, 1.5, 2.0),
    windows: int = 24,
    history_h: float = 24,
    seed: int = 0,
    policies: Sequence[str] = tuple(POLICIES),
    advance: Callable[[int], None] = lambda _windows: None,
) -> Comparison:
    """Play each policy over ``windows`` random beginnings for each deadline (a factor on ``work_h``).

    Raises InputError where a trace is shorter than the longest deadline and the history together.
    """
    rows: list[Row] = []
    for deadline in deadlines:
        job = Job(work_h, work_h * deadline)
        chosen = choose(traces, job, windows, history_h, seed)
        bounds, paid = [], []
        outcomes: dict[str, list[Outcome]] = {name: [] for name in policies}
        for window in chosen:
            bounds.append(
                cheapest_usd(
                    window.trace,
                    work_h=work_h,
                    deadline_h=job.deadline_h,
                    width=limits.max_machines,
                    cold_start_h=limits.cold_start_h,
                )
            )
            paid.append(simulate(window.trace, job, on_demand_only, limits).usd)
            for name in policies:
                outcomes[name].append(simulate(window.trace, job, POLICIES[name], limits, history=window.history))
            advance(1)
        rows += [_row(name, deadline, work_h, found, bounds, paid) for name, found in outcomes.items()]
    return Comparison(windows, len(traces[0].zones), work_h, limits.max_machines, tuple(rows))


def choose(traces: Sequence[Trace], job: Job, windows: int, history_h: float, seed: int) -> list[Window]:
    """Random windows that hold the job, the traces in turn; the same seed begins at the same share of each trace."""
    random = np.random.default_rng(seed)
    chosen = []
    for number in range(windows):
        trace = traces[number % len(traces)]
        ticks = ceil(job.deadline_h / trace.tick_h - 1e-9)
        before = round(history_h / trace.tick_h)
        room = trace.ticks - ticks - before
        if room < 0:
            raise InputError(
                f"a trace of {trace.hours:.0f} h is too short for {history_h:g} h of history and a deadline of "
                f"{job.deadline_h:g} h; give a longer trace or less work"
            )
        first = before + int(random.random() * (room + 1))
        history = trace.window(first - before, before) if before else None
        chosen.append(Window(trace.window(first, ticks), history))
    return chosen


def _row(
    name: str, deadline: float, work_h: float, outcomes: list[Outcome], bounds: list[float], on_demand: list[float]
) -> Row:
    usd = np.array([outcome.usd for outcome in outcomes])
    over = usd / np.array(bounds)
    return Row(
        policy=name,
        deadline=deadline,
        usd=float(usd.mean()),
        cost_over_oracle=float(over.mean()),
        worst_over_oracle=float(over.max()),
        cost_over_on_demand=float((usd / np.array(on_demand)).mean()),
        missed=sum(outcome.missed for outcome in outcomes),
        tokens_twice_share=float(np.mean([outcome.lost_h for outcome in outcomes])) / work_h,
        starts=float(np.mean([outcome.starts for outcome in outcomes])),
        on_demand_h=float(np.mean([outcome.on_demand_h for outcome in outcomes])),
    )
