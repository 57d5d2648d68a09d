"""Peak memory of a bake of 200,000 prompts over that of 2,000, each in a fresh process.

``ratio_memory`` is the peak resident set of the process that bakes, at ``size`` prompts over a hundredth of them (1:
memory does not grow with the night); in place of vLLM, whose memory is that of other processes, stands an engine that
answers at once. ``ratio_memory_vllm`` is the same with real vLLM beside it, as a night runs it, at a twentieth of
``size`` over the hundredth; ``engine_mb`` is the largest of its processes. Prompts have some 700 characters.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from benchmarks import Measured
from benchmarks._plan import PLAN_ID, plan_row, planned, prompt_of
from engine import Completion, Prompt, Status
from prebake.settings import Engine as EngineSettings
from prebake.settings import Settings
from prebake.tables import PLAN
from storage.store import open_store
from tasks.bake import bake

ARGS = {"enforce_eager": True, "dtype": "bfloat16", "max_model_len": 512, "max_num_seqs": 256}
_BATCH = 2000
_SYSTEM = "You are a help desk. " * 32


class InstantEngine:
    """The Engine interface without a model: every prompt is answered in the next step, some at a time."""

    model = "instant"
    capacity = 512
    restarts = 0

    def __init__(self) -> None:
        self._waiting: deque[Prompt] = deque()

    @property
    def in_flight(self) -> int:
        """Prompts that were added and have not come back."""
        return len(self._waiting)

    def add(self, prompt: Prompt) -> None:
        """Take a prompt."""
        self._waiting.append(prompt)

    def step(self) -> list[Completion]:
        """Answers to the first few of what waits."""
        first = [self._waiting.popleft() for _ in range(min(64, len(self._waiting)))]
        return [Completion(one.key, Status.ANSWERED, "stop", {"role": "assistant", "content": "Yes."}) for one in first]

    def salvage(self) -> list[Completion]:
        """All that waits, as partial."""
        waiting, self._waiting = self._waiting, deque()
        return [Completion(one.key, Status.PARTIAL) for one in waiting]

    def close(self) -> None:
        """Nothing is held."""


def run(size: int = 200_000) -> Measured:
    """Measure bakes of ``size`` prompts and of a hundredth of them, and with vLLM of a twentieth and a hundredth."""
    import prebake.cli  # noqa: F401 - it chooses the allocator for the processes started here, as for a night's
    from tests.tiny_model import make_tiny_model

    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    small, middle = max(1, size // 100), max(1, size // 20)
    with tempfile.TemporaryDirectory(prefix="prebake-bench-") as folder:
        engine = EngineSettings(model=str(make_tiny_model(Path(folder) / "model")), args=ARGS)
        few, many = (_measure(EngineSettings(), prompts) for prompts in (small, size))
        few_vllm, many_vllm = (_measure(engine, prompts) for prompts in (small, middle))
    return Measured(
        ratios={
            "ratio_memory": many["bake_mb"] / few["bake_mb"],
            "ratio_memory_vllm": many_vllm["bake_mb"] / few_vllm["bake_mb"],
        },
        sizes={"prompts": size, "prompts_small": small, "prompts_vllm": middle},
        figures={
            "bake_mb": many["bake_mb"],
            "bake_mb_small": few["bake_mb"],
            "bake_mb_vllm": many_vllm["bake_mb"],
            "bake_mb_vllm_small": few_vllm["bake_mb"],
            "engine_mb": many_vllm["engine_mb"],
            "engine_mb_small": few_vllm["engine_mb"],
            "instant_answers_per_s": size / many["seconds"],
        },
    )


def _measure(engine: EngineSettings, prompts: int) -> dict[str, float]:
    with planned(engine, _rows(prompts)) as (store, settings):
        command = [sys.executable, "-m", "benchmarks.memory", settings.model_dump_json()]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        assert store.ledger.progress(PLAN_ID).rows == prompts  # noqa: S101 - else it measured something else
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def _rows(prompts: int) -> Iterator[pa.RecordBatch]:
    chance = random.Random(7)
    for start in range(0, prompts, _BATCH):
        places = range(start, min(start + _BATCH, prompts))
        rows = [plan_row(n, prompt_of(_messages(n), chance.randint(1, 2))) for n in places]
        yield pa.RecordBatch.from_pylist(rows, PLAN.schema)


def _messages(number: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": f"How do I reset password {number}?"}]


def _bake(settings: Settings) -> dict[str, float]:
    """Bake the plan in this process; peaks in MB."""
    engine = None if settings.engine.model else InstantEngine()
    with open_store(settings) as store:
        report = bake(store, settings, PLAN_ID, run_id="bench", owner="bench", engine=engine)
    engine_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # Linux counts in KiB
    return {"bake_mb": _peak_mb(), "engine_mb": engine_mb, "seconds": report.seconds}


def _peak_mb() -> float:
    """Of this process; ru_maxrss would do, but a process begins with its parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


if __name__ == "__main__":
    print(json.dumps(_bake(Settings.model_validate_json(sys.argv[1]))))
