"""Spot policy in simulation: dollars over a clairvoyant bound, beside spot greedy, Uniform Progress and on demand.

``cost_over_oracle_F`` is our cost over the proven lower bound at a deadline of F times the work, and
``cost_over_on_demand_F`` over on-demand machines alone; the same of the others under their names. Up to 4 machines,
unless the key begins with ``one_machine``. Traces: H100 capacity of GCP as shipped (benchmarks/data), seeded synthetic
ones, or your own.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import Measured
from capacity.compare import Comparison, compare
from capacity.policy import Limits
from capacity.synthetic import make_trace
from capacity.trace import Trace, load_trace

H100 = Path(__file__).parent / "data" / "spot-h100" / "trace.parquet"
WIDTH = 4


def run(size: int = 24, traces: Path | None = None) -> Measured:
    """Play ``size`` windows for each deadline, width and set of traces."""
    sets: dict[str, list[Trace]] = {"": [load_trace(traces or H100)]}
    if traces is None:
        sets["synthetic_"] = [make_trace(seed) for seed in range(8)]
    ratios: dict[str, float] = {}
    for prefix, chosen in sets.items():
        ratios |= _ratios(prefix, compare(chosen, Limits(max_machines=WIDTH), windows=size))
        ratios |= _ratios(f"{prefix}one_machine_", compare(chosen, Limits(max_machines=1), windows=size))
        ratios |= _ratios(
            f"{prefix}no_history_",
            compare(chosen, Limits(max_machines=WIDTH), windows=size, history_h=0, policies=("prebake",)),
        )
    return Measured(ratios=ratios, sizes={"windows": size, "zones": len(sets[""][0].zones), "max_machines": WIDTH})


def _ratios(prefix: str, found: Comparison) -> dict[str, float]:
    ratios: dict[str, float] = {}
    for row in found.rows:
        name = prefix + ("" if row.policy == "prebake" else row.policy.replace(" ", "_") + "_")
        ratios[f"{name}cost_over_oracle_{row.deadline:g}"] = row.cost_over_oracle
        ratios[f"{name}cost_over_on_demand_{row.deadline:g}"] = row.cost_over_on_demand
        ratios[f"{name}missed"] = ratios.get(f"{name}missed", 0) + row.missed
        ratios[f"{name}tokens_twice_share"] = max(ratios.get(f"{name}tokens_twice_share", 0), row.tokens_twice_share)
    return ratios
