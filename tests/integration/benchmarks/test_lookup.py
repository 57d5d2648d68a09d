"""The frame and the lookup benchmark run small: what they print is checked, how fast it was is not."""

from __future__ import annotations

import json
import subprocess
import sys


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "benchmarks", *arguments], capture_output=True, text=True, check=False)


def test_without_a_name_the_benchmarks_are_listed() -> None:
    run = benchmarks()
    assert run.returncode == 0
    assert any(line.startswith("lookup ") for line in run.stdout.splitlines())


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    run = benchmarks("nonsense")
    assert run.returncode == 2
    assert "lookup" in run.stderr


def test_lookup_prints_its_ratios_sizes_and_machine_as_the_last_line() -> None:
    run = benchmarks("lookup", "--size", "600", "--json")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["benchmark"] == "lookup"
    assert result["ratio_lmdb"] > 1  # a request cannot be looked up faster than its key
    assert result["ratio_duckdb"] > 0
    assert result["sizes"]["answers"] == result["sizes"]["lookups"] == 600
    assert result["machine"]["cores"] >= 1
