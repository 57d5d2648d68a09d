"""The spot benchmark, run small: every policy keeps the deadline, none undercuts the bound, ours is the cheapest."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.spot import H100, run


@pytest.mark.slow
def test_every_figure_is_a_ratio_over_the_bound_and_no_deadline_is_missed() -> None:
    measured = run(size=2)
    over = {name: value for name, value in measured.ratios.items() if "cost_over_oracle" in name}
    assert min(over.values()) >= 1
    assert {value for name, value in measured.ratios.items() if name.endswith("missed")} == {0}
    assert max(value for name, value in measured.ratios.items() if name.endswith("twice_share")) < 0.01
    for deadline in ("1.05", "1.5", "2"):
        assert over[f"cost_over_oracle_{deadline}"] < over[f"uniform_progress_cost_over_oracle_{deadline}"]
        assert over[f"cost_over_oracle_{deadline}"] < over[f"on_demand_cost_over_oracle_{deadline}"]


def test_any_trace_can_be_given(tmp_path: Path) -> None:
    own = tmp_path / "own.parquet"
    own.write_bytes(H100.read_bytes())
    measured = run(size=1, traces=own)
    assert not [name for name in measured.ratios if name.startswith("synthetic")]
    assert measured.sizes["zones"] == 13
