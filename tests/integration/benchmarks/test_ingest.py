"""The ingest benchmark runs small: what it prints is checked, how fast it was is not."""

from __future__ import annotations

import json
import subprocess
import sys


def test_it_prints_its_ratio_as_the_last_line() -> None:
    command = [sys.executable, "-m", "benchmarks", "ingest", "--json", "--size", "2000"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["ratio_duckdb"] > 0
    assert found["sizes"]["rows"] == 2000
    assert 0 < found["sizes"]["distinct_prompts"] < 2000
