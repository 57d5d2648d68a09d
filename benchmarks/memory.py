"""Peak memory of a bake of many prompts over that of a hundredth of them, each in a fresh process.

``ratio_memory`` is the peak resident set of the process that bakes, at ``size`` prompts over ``size / 100`` (1: memory
does not grow with the night). The engine's processes are children of it and not in that figure; ``engine_mb`` is the
largest of them. Prompts have some 800 characters, answers one or two tokens: what is held per prompt is the same as
with long ones.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from benchmarks import Measured
from benchmarks._plan import PLAN_ID, plan_row, planned
from prebake.settings import Engine as EngineSettings
from prebake.settings import Settings
from prebake.tables import PLAN

SMALLER = 100
ARGS = {"enforce_eager": True, "dtype": "bfloat16", "max_model_len": 512, "max_num_seqs": 256}
_BATCH = 2000
_SYSTEM = "You are a help desk. " * 32


def run(size: int = 200_000) -> Measured:
    """Measure bakes of ``size`` prompts and of a hundredth of them."""
    from tests.tiny_model import make_tiny_model

    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    small = max(1, size // SMALLER)
    with tempfile.TemporaryDirectory(prefix="prebake-bench-") as folder:
        engine = EngineSettings(model=str(make_tiny_model(Path(folder) / "model")), args=ARGS)
        few, many = (_measure(engine, prompts) for prompts in (small, size))
    return Measured(
        ratios={"ratio_memory": many["bake_mb"] / few["bake_mb"]},
        sizes={"prompts": size, "prompts_small": small},
        figures={
            "bake_mb": many["bake_mb"],
            "bake_mb_small": few["bake_mb"],
            "engine_mb": many["engine_mb"],
            "engine_mb_small": few["engine_mb"],
            "answers_per_s": size / many["seconds"],
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
        yield pa.RecordBatch.from_pylist([plan_row(n, _messages(n), chance.randint(1, 2)) for n in places], PLAN.schema)


def _messages(number: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": f"How do I reset password {number}?"}]


def _bake(settings: Settings) -> dict[str, float]:
    """Bake the plan in this process; peaks in MB."""
    from storage.store import open_store
    from tasks.bake import bake

    with open_store(settings) as store:
        report = bake(store, settings, PLAN_ID, run_id="bench", owner="bench")
    return {"bake_mb": _peak_mb(resource.RUSAGE_SELF), "engine_mb": _children_mb(), "seconds": report.seconds}


def _children_mb() -> float:
    return _peak_mb(resource.RUSAGE_CHILDREN)


def _peak_mb(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024  # Linux counts in KiB


if __name__ == "__main__":
    print(json.dumps(_bake(Settings.model_validate_json(sys.argv[1]))))
