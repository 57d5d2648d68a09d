"""How many machines a night needs: the planning formula, before anything is known of this night's spot market."""

from __future__ import annotations

from math import ceil

from prebake.errors import BudgetError


def efficiency(preemptions_per_h: float, cold_start_h: float, flush_s: float) -> float:
    """The share of a spot machine's paid time that counts, 0 to 1.

    Each preemption costs a cold start and, on average, half of what is written every ``flush_s`` seconds.
    """
    return max(1 - preemptions_per_h * (cold_start_h + flush_s / 2 / 3600), 0.0)


def machines_needed(
    tokens: float,
    tokens_per_s: float,
    deadline_h: float,
    *,
    cold_start_h: float = 0.2,
    preemptions_per_h: float = 0.0,
    flush_s: float = 5.0,
    reserve: float = 0.1,
    max_machines: int | None = None,
) -> int:
    """The fewest machines that bake ``tokens`` within ``deadline_h`` hours, each doing ``tokens_per_s``.

    n machines work for deadline - cold start hours each, of which the share eta counts (``efficiency``), so they do
    n * eta * (deadline - cold start) * 3600 * tokens_per_s tokens; that must be the backlog and a reserve:

        n = ceil((1 + reserve) * tokens / (3600 * tokens_per_s * eta * (deadline_h - cold_start_h)))

    Raises BudgetError where no number of machines suffices, or more than ``max_machines``.
    """
    if tokens <= 0:
        return 0
    eta = efficiency(preemptions_per_h, cold_start_h, flush_s)
    each = 3600 * tokens_per_s * eta * (deadline_h - cold_start_h)
    if each <= 0:
        raise BudgetError(
            f"a night of {deadline_h:g} h is over before a machine has started ({cold_start_h:g} h, "
            f"{preemptions_per_h:g} preemptions per hour); give it more hours or steadier machines"
        )
    machines = ceil((1 + reserve) * tokens / each - 1e-9)
    if max_machines is not None and machines > max_machines:
        raise BudgetError(
            f"{tokens:,.0f} tokens in {deadline_h:g} h need {machines} machines of {tokens_per_s:,.0f} tokens/s; "
            f"at most {max_machines} are allowed: raise capacity.max_machines, or give the night more hours"
        )
    return machines


def usd_per_million_tokens(usd_per_h: float, tokens_per_s: float, eta: float = 1.0) -> float:
    """Dollars per million tokens of a machine, of whose paid time the share ``eta`` counts."""
    return usd_per_h * 1e6 / (3600 * tokens_per_s * eta)
