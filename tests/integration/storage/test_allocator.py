"""Every process that holds answers uses the allocator that gives freed memory back, however it was started."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
STARTS = ["prebake.cli", "tasks.worker", "flows.nightly", "flows.bake_worker"]


@pytest.mark.parametrize("start", STARTS)
def test_arrow_uses_the_system_allocator(start: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    code = f"import {start}, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "system"
