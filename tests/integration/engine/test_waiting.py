"""vLLM's core leaves the processor to others while its worker computes."""

from __future__ import annotations

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
    core = next(child for child in psutil.Process(engine.pid).children() if "EngineCore" in str(child.cmdline()))
    before = core.num_ctx_switches().voluntary
    done = answer_all(engine, [ask(0, "why is the sky blue?", limit=TOKENS, ignore_eos=True)])
    slept = core.num_ctx_switches().voluntary - before
    engine.close()
    assert done[0].status is Status.TRUNCATED
    assert slept > SLEEPS_PER_TOKEN * TOKENS
