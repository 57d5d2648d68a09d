"""A benchmark run small, in a process of its own as people start it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def measured(name: str, size: int, timeout_s: float) -> dict[str, Any]:
    """What the benchmark prints as its last line."""
    command = [sys.executable, "-m", "benchmarks", name, "--json", "--size", str(size)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found
