"""One engine over two workers (tensor or pipeline parallel), by settings alone: it answers, and ends as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine import Status, open_engine
from tests.tiny_model import answer_all, ask, engine_settings_for

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "args",
    [
        {"tensor_parallel_size": 2},
        # Stages hand tensors on in buffers that vLLM's CPU build makes as it warms up, which eager mode leaves out.
        {"pipeline_parallel_size": 2, "enforce_eager": False},
    ],
    ids=["tensor", "pipeline"],
)
def test_an_engine_of_two_workers_answers_and_leaves_none_behind(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, args: dict[str, Any]
) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("vLLM binds each worker to a core of its own, and this machine has one")
    # On a machine with one NUMA node vLLM must be told which cores are whose.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[1]}")
    engine = open_engine(engine_settings_for(tiny_model, args=args))
    group = engine.pid
    members = [process for process in psutil.process_iter() if _group(process) == group]
    done = answer_all(engine, [ask(number, f"question {number}") for number in range(8)])
    engine.close()
    assert {completion.status for completion in done.values()} <= {Status.ANSWERED, Status.TRUNCATED}
    assert len(done) == 8
    assert len(members) >= 4  # the host, vLLM's core, and its two workers

    assert not [process for process in psutil.process_iter() if _group(process) == group]


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None
