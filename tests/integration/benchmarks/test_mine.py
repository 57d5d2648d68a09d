"""The mining benchmark runs small: what it prints is checked, how fast it was is not."""

from __future__ import annotations

import json
import subprocess
import sys


def test_it_prints_its_ratios_as_the_last_line() -> None:
    command = [sys.executable, "-m", "benchmarks", "mine", "--json", "--size", "2000"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["ratio_duckdb"] > 0
    assert found["ratio_duckdb_cpu"] > 0
    sizes = found["sizes"]
    assert (sizes["rows"], sizes["days"]) == (2000, 5)
    assert 0 < sizes["fingerprints_by_day"] < 2000  # some prompt comes twice on a day
