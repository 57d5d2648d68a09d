"""The benchmark of the night's order, at a small size: what it counts is checked, how fast it was is not."""

from __future__ import annotations

import pytest

from tests.measuring import measured


@pytest.mark.slow
def test_our_order_hits_what_can_be_hit_and_its_ratios_are_the_last_line() -> None:
    found = measured("order", 60, timeout_s=1000)
    assert found["sizes"]["prompts"] == 60
    assert found["ratio_log_order"] > 0
    assert found["ratio_log_order_ample"] > 0
    assert 0.95 <= found["prefix_hit_over_bound"] <= 1
    assert found["figures"]["log_order_hit_over_bound"] < found["prefix_hit_over_bound"]
