"""The benchmark of baking runs, at a small size, in a process of its own as people start it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_it_prints_its_ratios_as_the_last_line() -> None:
    command = [sys.executable, "-m", "benchmarks", "bake", "--json", "--size", "24"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["sizes"]["prompts"] == 24
    for ratio in ("ratio_vllm", "ratio_without_logprobs", "ratio_chunked", "ratio_supervised"):
        assert found[ratio] > 0
