"""A small roll-out under load: every process swaps, from disk and from S3, and no request notices."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_nights_roll_out_to_all_processes_and_no_request_fails_or_mixes_two() -> None:
    command = [sys.executable, "-m", "benchmarks", "reload", "--json", "--size", "20"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["swaps"] >= 22
    assert result["sizes"]["swaps_s3"] >= 2
    assert result["sizes"]["requests"] > 0
    assert result["failed"] == result["sizes"]["mixed"] == result["sizes"]["kept"] == 0
    assert result["sizes"]["mapped"] <= 2
