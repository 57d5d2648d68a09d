"""Bake a plan into committed parts, beside bare ``LLM.chat`` on the same prompts and the same loaded vLLM.

All ratios are tokens per second, ours over theirs. ``ratio_vllm``: both asked for log-probabilities, as a night asks
unless ``engine.logprobs`` is off; ``ratio_without_logprobs``: neither. ``ratio_chunked``: answers of very uneven length
and ``LLM.chat`` called for 512 prompts at a time, as scripts that save now and then do. ``ratio_supervised``: as
``ratio_vllm``, but ours with the engine in its own process, as a night runs it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import Measured, interleaved
from benchmarks._plan import bake_plan, limits, messages, plan_row, prompt_of, uneven
from engine import Engine, open_engine
from prebake.settings import Engine as EngineSettings

ROUNDS = 7
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


def run(size: int = 2000, *, model: str = "", rounds: int = ROUNDS, supervised: bool = True) -> Measured:
    """Measure ``size`` prompts; ``model``: a folder (empty: a tiny random Llama made on the spot)."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory(prefix="prebake-bench-") as folder:
        settings = EngineSettings(model=model or _tiny_model(Path(folder) / "model"), args=ARGS)
        from vllm import LLM

        from engine.vllm_engine import VllmEngine

        llm = LLM(model=settings.model, **ARGS)
        engine = VllmEngine(settings, llm)
        plain = VllmEngine(settings.model_copy(update={"logprobs": False}), llm)
        even = _prompts(limits(size, lambda chance: chance.randint(8, 64)))
        ragged = _prompts(limits(size, uneven(3.2, 1.1, 400)))
        contestants: dict[str, Callable[[], float]] = {
            "vllm": lambda: bare(llm, even, size, logprobs=0),
            "ours": lambda: ours(settings, engine, even),
            "vllm_without_logprobs": lambda: bare(llm, even, size),
            "ours_without_logprobs": lambda: ours(settings, plain, even),
            "chunked": lambda: bare(llm, ragged, CHUNK, logprobs=0),
            "ours_uneven": lambda: ours(settings, engine, ragged),
        }
        with _beside(settings, supervised) as other:
            if other is not None:
                contestants["supervised"] = lambda: ours(settings, other, even)
            for contestant in contestants.values():
                contestant()  # the first generation of a process compiles
            speeds = interleaved(contestants, rounds)
        engine.close()
    ratios = {
        "ratio_vllm": speeds["ours"] / speeds["vllm"],
        "ratio_without_logprobs": speeds["ours_without_logprobs"] / speeds["vllm_without_logprobs"],
        "ratio_chunked": speeds["ours_uneven"] / speeds["chunked"],
    }
    if supervised:
        ratios["ratio_supervised"] = speeds["supervised"] / speeds["vllm"]
    sizes = {"prompts": size, "tokens": _tokens(even), "tokens_uneven": _tokens(ragged), "rounds": rounds}
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


def bare(llm: Any, prompts: list[dict[str, Any]], chunk: int, *, logprobs: int | None = None) -> float:
    """Tokens per second of ``LLM.chat``, called for that many prompts at a time; ``logprobs`` as vLLM has it."""
    from vllm import SamplingParams

    started, tokens = time.perf_counter(), 0
    for start in range(0, len(prompts), chunk):
        part = prompts[start : start + chunk]
        params = [SamplingParams(temperature=0, logprobs=logprobs, **prompt["params"]) for prompt in part]
        outputs = llm.chat([prompt["messages"] for prompt in part], params, use_tqdm=False)
        tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
    assert tokens == _tokens(prompts)  # noqa: S101 - a measurement of something else is worse than none
    return tokens / (time.perf_counter() - started)


def ours(engine_settings: EngineSettings, engine: Engine, prompts: list[dict[str, Any]]) -> float:
    """Tokens per second from plan rows to parts committed in the ledger."""
    rows = [plan_row(place, prompt) for place, prompt in enumerate(prompts)]
    report, seconds = bake_plan(engine_settings, engine, rows)
    assert report.completion_tokens == _tokens(prompts)  # noqa: S101
    return report.completion_tokens / seconds


def _prompts(lengths: list[int]) -> list[dict[str, Any]]:
    return [prompt_of(messages(number), length) for number, length in enumerate(lengths)]


def _tokens(prompts: list[dict[str, Any]]) -> int:
    return sum(prompt["params"]["max_tokens"] for prompt in prompts)
