"""The benchmark of memory, at a small size: every answer is baked in each process, and the peaks are told."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_it_prints_peaks_and_their_ratios_as_the_last_line() -> None:
    command = [sys.executable, "-m", "benchmarks", "memory", "--json", "--size", "600"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1000, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["sizes"] == {"prompts": 600, "prompts_small": 6, "prompts_vllm": 30}
    assert found["ratio_memory"] == found["figures"]["bake_mb"] / found["figures"]["bake_mb_small"]
    assert found["ratio_memory_vllm"] > 0
    assert found["figures"]["engine_mb"] > 100
