"""The benchmark of how vLLM's processes wait for each other runs, at a small size."""

from __future__ import annotations

import pytest

from tests.measuring import measured


@pytest.mark.slow
def test_it_bakes_by_both_ways_beside_a_bystander() -> None:
    found = measured("waiting", 16, timeout_s=550)
    assert found["sizes"]["prompts"] == 16
    assert found["ratio_yielding"] > 0
    assert {"latest_sleeping_s", "latest_yielding_s"} < set(found["figures"])
