"""vLLM's core leaves the processor to others while its worker computes."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from engine import Status, open_engine
from tests.tiny_model import answer_all, ask, engine_settings_for

pytestmark = pytest.mark.slow

TOKENS = 20
# Again and again during the 0.2 s of a step. One that yields stays runnable: Linux counts that as another switch.
SLEEPS_PER_TOKEN = 20


def test_the_core_sleeps_while_it_waits_for_its_worker(tiny_model: Path) -> None:
    settings = engine_settings_for(tiny_model, args={"logits_processors": ["tests.processors:SnailProcessor"]})
    engine = open_engine(settings)
    core = next(process for process in psutil.process_iter() if _is_core(process, engine.pid))
    before = core.num_ctx_switches().voluntary
    done = answer_all(engine, [ask(0, "why is the sky blue?", limit=TOKENS, ignore_eos=True)])
    slept = core.num_ctx_switches().voluntary - before
    engine.close()
    assert done[0].status is Status.TRUNCATED
    assert slept > SLEEPS_PER_TOKEN * TOKENS


def _is_core(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and "EngineCore" in process.cmdline()[0]
    except (ProcessLookupError, psutil.NoSuchProcess, IndexError):
        return False
