"""The simulator: plays a policy against a trace and counts what it cost, tick by tick.

In: a trace, a job, a policy. Out: an ``Outcome``. Rules: a machine is billed from its start, cold start included; it
works after its cold start; it is preempted at the tick in which its zone no longer has it, without notice, and what
it did in the last ``lost_h`` is done again; a machine that is let go loses nothing. A policy sees the present tick
and what came before it, never what comes after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import numpy as np

from capacity.lifetimes import Lifetimes
from capacity.policy import Fleet, Limits, Machine, View
from capacity.trace import Trace

Policy = Callable[[View, Limits], Fleet]


@dataclass(frozen=True)
class Job:
    """What there is to do."""

    work_h: float
    """Hours of work of one machine of speed 1."""
    deadline_h: float
    budget_usd: float = inf


@dataclass(frozen=True)
class Outcome:
    """How a job went."""

    usd: float
    hours: float
    """Until it was finished, or the deadline."""
    left_h: float
    """Work not done by the deadline."""
    lost_h: float
    """Work done twice."""
    starts: int
    preemptions: int
    on_demand_h: float
    machines: tuple[Fleet, ...] = field(repr=False)
    """The fleet of each tick."""
    done_h: tuple[float, ...] = field(repr=False)
    """Work done by the end of each tick."""

    @property
    def missed(self) -> bool:
        """Whether the deadline was missed."""
        return bool(self.left_h > 1e-9)


@dataclass
class _Running:
    zone: int
    on_demand: bool
    cold_h: float
    worked_h: float = 0.0


def simulate(trace: Trace, job: Job, policy: Policy, limits: Limits, *, history: Trace | None = None) -> Outcome:
    """Play the policy; ``history`` is what was recorded of the same zones before the job began."""
    seen = Lifetimes.unknown(len(trace.zones))
    for available in history.available if history else ():
        seen = seen.observe(available, trace.tick_h)
    machines: list[_Running] = []
    usd = lost_h = on_demand_h = done_h = now_h = 0.0
    starts = preemptions = tick = 0
    fleets: list[Fleet] = []
    progress: list[float] = []
    while now_h < job.deadline_h - 1e-9 and done_h < job.work_h - 1e-9 and tick < trace.ticks:
        step_h = min(trace.tick_h, job.deadline_h - now_h)
        available, spot_usd = trace.available[tick], trace.spot_usd[tick]
        machines, taken = _preempt(machines, available)
        again = sum(min(limits.lost_h, machine.worked_h) * trace.speed[machine.zone] for machine in taken)
        done_h, lost_h, preemptions = done_h - again, lost_h + again, preemptions + len(taken)
        seen = seen.observe(available, trace.tick_h)
        view = View(
            left_h=job.deadline_h - now_h,
            work_h=job.work_h - done_h,
            step_h=step_h,
            available=available,
            spot_usd=spot_usd,
            on_demand_usd=trace.on_demand_usd,
            speed=trace.speed,
            machines=tuple(Machine(machine.zone, machine.on_demand, machine.cold_h) for machine in machines),
            seen=seen,
            total_h=job.work_h,
            deadline_h=job.deadline_h,
            budget_usd=job.budget_usd - usd,
        )
        fleet = policy(view, limits)
        _check(fleet, view, limits)
        machines, started = _adjust(machines, fleet, limits.cold_start_h)
        lasted_h = _time_to_finish(machines, trace, view.work_h, step_h)
        for machine in machines:
            price = trace.on_demand_usd[machine.zone] if machine.on_demand else spot_usd[machine.zone]
            works_h = max(lasted_h - machine.cold_h, 0)
            usd += float(price) * lasted_h
            on_demand_h += lasted_h * machine.on_demand
            done_h += works_h * float(trace.speed[machine.zone])
            machine.worked_h += works_h
            machine.cold_h = max(machine.cold_h - lasted_h, 0)
        starts += started
        now_h += lasted_h
        tick += 1
        fleets.append(fleet)
        progress.append(done_h)
    left_h = max(job.work_h - done_h, 0)
    return Outcome(usd, now_h, left_h, lost_h, starts, preemptions, on_demand_h, tuple(fleets), tuple(progress))


def _preempt(machines: list[_Running], available: np.typing.NDArray[np.int32]) -> tuple[list[_Running], list[_Running]]:
    """Those that stay and those that are taken; a zone takes its newest machines first."""
    room = available.tolist()
    stay: list[_Running] = []
    taken: list[_Running] = []
    for machine in machines:
        if not machine.on_demand:
            room[machine.zone] -= 1
        (taken if not machine.on_demand and room[machine.zone] < 0 else stay).append(machine)
    return stay, taken


def _check(fleet: Fleet, view: View, limits: Limits) -> None:
    """A policy that asks for what is not there is a mistake in the policy, not a result."""
    if fleet.machines > limits.max_machines or np.any(np.array(fleet.spot) > view.available):
        raise AssertionError(f"a policy asked for {fleet} where {view.available.tolist()} are available")


def _adjust(machines: list[_Running], fleet: Fleet, cold_start_h: float) -> tuple[list[_Running], int]:
    """Let go of what the fleet does not have (the coldest first), start what it has more."""
    wanted = {(zone, False): count for zone, count in enumerate(fleet.spot) if count}
    wanted |= {(zone, True): count for zone, count in enumerate(fleet.on_demand) if count}
    kept = []
    for machine in sorted(machines, key=lambda machine: machine.cold_h):
        kind = (machine.zone, machine.on_demand)
        if wanted.get(kind, 0):
            wanted[kind] -= 1
            kept.append(machine)
    new = [_Running(zone, on_demand, cold_start_h) for (zone, on_demand), count in wanted.items() for _ in range(count)]
    return kept + new, len(new)


def _time_to_finish(machines: list[_Running], trace: Trace, work_h: float, step_h: float) -> float:
    """Hours until the machines have done the work, at most the step."""
    rate = done_h = now_h = 0.0
    for cold_h, speed in sorted((machine.cold_h, float(trace.speed[machine.zone])) for machine in machines):
        if cold_h >= step_h or done_h + rate * (cold_h - now_h) >= work_h:
            break
        done_h += rate * (cold_h - now_h)
        rate, now_h = rate + speed, cold_h
    return min(step_h, now_h + (work_h - done_h) / rate) if rate else step_h
