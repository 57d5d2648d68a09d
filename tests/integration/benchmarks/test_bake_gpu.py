"""The benchmark of baking on a GPU says where it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys


def test_without_a_gpu_it_says_so_in_one_line_and_fails() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "bake_gpu", "--json"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.splitlines()[-1] == "benchmark bake_gpu: needs a CUDA device, and there is none"
