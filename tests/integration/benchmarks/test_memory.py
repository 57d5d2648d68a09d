"""The benchmark of memory, at a small size: every answer is baked in each process, and the peaks are told."""

from __future__ import annotations

import pytest

from tests.measuring import measured


@pytest.mark.slow
def test_it_prints_peaks_and_their_ratios_as_the_last_line() -> None:
    found = measured("memory", 600, timeout_s=1000)
    assert found["sizes"] == {"prompts": 600, "prompts_small": 6, "prompts_vllm": 30}
    assert found["ratio_memory"] == found["figures"]["bake_mb"] / found["figures"]["bake_mb_small"]
    assert found["ratio_memory_vllm"] > 0
    assert found["figures"]["engine_mb"] > 100
