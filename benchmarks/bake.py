"""Bake a plan into committed parts, beside bare ``LLM.chat`` on the same prompts and the same loaded vLLM.

``ratio_vllm`` and ``ratio_chunked`` are tokens per second, ours over theirs; the latter with answers of very uneven
length and ``LLM.chat`` called for 512 prompts at a time, as scripts that save now and then do. ``ratio_supervised`` is
as ``ratio_vllm``, but ours with the engine in its own process, as a night runs it.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import Measured, interleaved
from benchmarks._plan import bake_plan, plan_row
from engine import Engine, open_engine
from prebake.settings import Engine as EngineSettings

ROUNDS = 3
CHUNK = 512
# Without a prefix cache: it would make whoever runs second the faster one.
ARGS = {
    "enforce_eager": True,
    "dtype": "bfloat16",
    "max_model_len": 512,
    "max_num_seqs": 256,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
}
_TEXT = "how do I reset my password where can find the invoice of France city river quick brown fox"


def run(size: int = 2000, *, model: str = "", rounds: int = ROUNDS, supervised: bool = True) -> Measured:
    """Measure ``size`` prompts; ``model``: a folder (empty: a tiny random Llama made on the spot)."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory(prefix="prebake-bench-") as folder:
        settings = EngineSettings(model=model or _tiny_model(Path(folder) / "model"), args=ARGS)
        from vllm import LLM

        from engine.vllm_engine import VllmEngine

        llm = LLM(model=settings.model, **ARGS)
        ours = VllmEngine(settings, llm)
        even, uneven = _limits(size, lambda r: r.randint(8, 64)), _limits(size, _uneven)
        contestants: dict[str, Callable[[], float]] = {
            "vllm": lambda: _bare(llm, even, size),
            "ours": lambda: _ours(settings, ours, even),
            "chunked": lambda: _bare(llm, uneven, CHUNK),
            "ours_uneven": lambda: _ours(settings, ours, uneven),
        }
        with _beside(settings, supervised) as other:
            if other is not None:
                contestants["supervised"] = lambda: _ours(settings, other, even)
            for contestant in contestants.values():
                contestant()  # the first generation of a process compiles
            speeds = interleaved(contestants, rounds)
        ours.close()
    ratios = {
        "ratio_vllm": speeds["ours"] / speeds["vllm"],
        "ratio_chunked": speeds["ours_uneven"] / speeds["chunked"],
    }
    if supervised:
        ratios["ratio_supervised"] = speeds["supervised"] / speeds["vllm"]
    sizes = {"prompts": size, "tokens": sum(even), "tokens_uneven": sum(uneven), "rounds": rounds}
    return Measured(ratios, sizes, {f"{name}_tokens_per_s": speed for name, speed in speeds.items()})


def _tiny_model(folder: Path) -> str:
    from tests.tiny_model import make_tiny_model

    return str(make_tiny_model(folder))


@contextmanager
def _beside(settings: EngineSettings, supervised: bool) -> Iterator[Engine | None]:
    engine = open_engine(settings) if supervised else None
    yield engine
    if engine is not None:
        engine.close()


def _limits(size: int, draw: Callable[[random.Random], int]) -> list[int]:
    chance = random.Random(7)
    return [draw(chance) for _ in range(size)]


def _uneven(chance: random.Random) -> int:
    # Lengths of real answers are roughly log-normal: many short ones, a few that reach the limit.
    return max(4, min(400, int(chance.lognormvariate(3.2, 1.1))))


def _messages(number: int) -> list[dict[str, str]]:
    chance = random.Random(number)
    text = " ".join(chance.choices(_TEXT.split(), k=chance.randint(5, 40)))
    return [{"role": "system", "content": "You are a help desk."}, {"role": "user", "content": f"{text} {number}"}]


def _bare(llm: Any, limits: list[int], chunk: int) -> float:
    from vllm import SamplingParams

    started, tokens = time.perf_counter(), 0
    for start in range(0, len(limits), chunk):
        part = range(start, min(start + chunk, len(limits)))
        params = [SamplingParams(temperature=0, max_tokens=limits[n], ignore_eos=True) for n in part]
        outputs = llm.chat([_messages(n) for n in part], params, use_tqdm=False)
        tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
    assert tokens == sum(limits)  # noqa: S101 - a measurement of something else is worse than none
    return tokens / (time.perf_counter() - started)


def _ours(settings: EngineSettings, engine: Engine, limits: list[int]) -> float:
    rows = [plan_row(number, _messages(number), limit) for number, limit in enumerate(limits)]
    report, seconds = bake_plan(settings, engine, rows)
    assert report.completion_tokens == sum(limits)  # noqa: S101
    return report.completion_tokens / seconds
