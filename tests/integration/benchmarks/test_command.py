"""``python -m benchmarks`` says what there is, and what it lacks."""

from __future__ import annotations

import subprocess
import sys

from benchmarks import names

# A module that is None in sys.modules is not found, as in an environment without the development requirements.
WITHOUT_PYTEST = "import runpy, sys; sys.modules['pytest'] = None; runpy.run_module('benchmarks', run_name='__main__')"


def without_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTEST, *arguments], check=False, capture_output=True, text=True
    )


def test_benchmarks_are_listed_also_where_they_cannot_run() -> None:
    done = without_pytest()
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == names()


def test_a_benchmark_that_lacks_its_requirements_says_what_to_do() -> None:
    done = without_pytest("chaos")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "benchmark chaos: pytest is not installed; set up what benchmarks need: make .venv/.dev"
    )
