"""The night's order beside the log's: 20 system prompts of 500 tokens, a prefix cache that holds half of them or all.

The same prompts, in the order of ``tasks/order.py`` and as they came (at random), go through the same bake into the
same loaded vLLM, its prefix cache emptied before each round. ``ratio_log_order`` is the log order's wall time over
ours where the cache is scarce (higher is better), ``ratio_log_order_ample`` where it holds everything.
``prefix_hit_over_bound`` is what vLLM's own metrics count as hits in our order, scarce, over the most that any order
could hit: whole blocks, each computed but once. The order knows each answer's length as a log's mean does, off by up
to a factor of two.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import orjson

from benchmarks import Measured, interleaved
from benchmarks._plan import bake_plan, plan_row, prompt_of
from engine import Engine, Prompt
from prebake.settings import Engine as EngineSettings
from tasks.order import order, prefix_key, shared_blocks

ROUNDS = 5
SYSTEMS = 20
SYSTEM_TOKENS = 500
AT_ONCE = 8
BLOCK = 32  # tokens; vLLM's CPU backend wants multiples of 32
SCARCE = 176  # blocks: eight running requests and a few prefixes
AMPLE = 2048
# Large enough for the model, and not what is around it, to take the time.
MODEL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
ARGS = {
    "enforce_eager": True,
    "dtype": "bfloat16",
    "max_model_len": 1024,
    "max_num_seqs": AT_ONCE,
    "block_size": BLOCK,
    "enable_prefix_caching": True,
    "disable_log_stats": False,
}
_TEXT = "how do I reset my password where can find the invoice of France city river quick brown fox billing page"
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class _Asked:
    """One prompt, the tokens of its answer, and how many a log would make expect."""

    messages: list[dict[str, str]]
    tokens: int
    expected: float


@dataclass(frozen=True)
class _Found:
    """Median seconds of either order; tokens that ours hit in the cache, and the most that could be hit."""

    log_s: float
    ours_s: float
    hits: float
    log_hits: float
    bound: int


def run(size: int = 400, *, rounds: int = ROUNDS) -> Measured:
    """Measure ``size`` prompts."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from tests.tiny_model import make_tiny_model

    with tempfile.TemporaryDirectory(prefix="prebake-bench-") as folder:
        model = str(make_tiny_model(Path(folder) / "model", **MODEL))
        scarce, ample = (_measure(model, blocks, size, rounds) for blocks in (SCARCE, AMPLE))
    return Measured(
        ratios={
            "ratio_log_order": scarce.log_s / scarce.ours_s,
            "ratio_log_order_ample": ample.log_s / ample.ours_s,
            "prefix_hit_over_bound": scarce.hits / scarce.bound,
        },
        sizes={
            "prompts": size,
            "system_prompts": SYSTEMS,
            "system_tokens": SYSTEM_TOKENS,
            "cache_tokens_scarce": SCARCE * BLOCK,
            "cache_tokens_ample": AMPLE * BLOCK,
            "rounds": rounds,
        },
        figures={
            "log_order_hit_over_bound": scarce.log_hits / scarce.bound,
            "ample_hit_over_bound": ample.hits / ample.bound,
            "log_order_s": scarce.log_s,
            "ours_s": scarce.ours_s,
            "log_order_ample_s": ample.log_s,
            "ours_ample_s": ample.ours_s,
        },
    )


def _measure(model: str, blocks: int, size: int, rounds: int) -> _Found:
    from vllm import LLM

    from engine.vllm_engine import VllmEngine

    settings = EngineSettings(model=model, args=ARGS | {"num_gpu_blocks_override": blocks})
    llm = LLM(model=model, **settings.args)
    engine = VllmEngine(settings, llm)
    try:
        log = _log(size, llm.get_tokenizer())
        ours = [log[number] for number in _put(log)]
        bound = _most_hits(llm, log)
        hits: dict[str, list[int]] = {"log": [], "ours": []}

        def bake(name: str, asked: Sequence[_Asked]) -> float:
            assert llm.reset_prefix_cache()  # noqa: S101 - else the round before would pay for this one
            before = _hits(llm)
            seconds = _bake(settings, engine, asked)
            hits[name].append(_hits(llm) - before)
            return seconds

        _bake(settings, engine, [replace(one, tokens=2) for one in log[: 4 * AT_ONCE]])  # the first ones compile
        seconds = interleaved({"log": lambda: bake("log", log), "ours": lambda: bake("ours", ours)}, rounds)
    finally:
        engine.close()
    return _Found(seconds["log"], seconds["ours"], mean(hits["ours"]), mean(hits["log"]), bound)


def _log(size: int, tokenizer: Any) -> list[_Asked]:
    """The prompts as they came: at random over the system prompts, with answers of very uneven length."""
    chance = random.Random(7)
    systems = [_system(number, tokenizer) for number in range(SYSTEMS)]
    asked = []
    for number in range(size):
        user = f"{' '.join(chance.choices(_WORDS, k=chance.randint(5, 30)))} {number}"
        messages = [{"role": "system", "content": systems[number % SYSTEMS]}, {"role": "user", "content": user}]
        tokens = max(2, min(128, int(chance.lognormvariate(2.5, 0.9))))
        asked.append(_Asked(messages, tokens, tokens * 2 ** chance.uniform(-1, 1)))
    chance.shuffle(asked)
    return asked


def _system(number: int, tokenizer: Any) -> str:
    chance = random.Random(1000 + number)
    words = [f"{number}"]
    while len(tokenizer.encode(" ".join(words))) < SYSTEM_TOKENS:
        words.append(chance.choice(_WORDS))
    return " ".join(words)


def _put(log: Sequence[_Asked]) -> list[int]:
    """The order of the plan step."""
    keys = [prefix_key(_request(one)) for one in log]
    ranks = sorted(range(len(log)), key=lambda number: keys[number])
    shared = [0, *(shared_blocks(keys[before], keys[number]) for before, number in pairwise(ranks))]
    return [ranks[place] for place in order(shared, [log[number].expected for number in ranks], AT_ONCE)]


def _request(one: _Asked) -> str:
    return orjson.dumps({"messages": one.messages, "model": "bench", "params": {}}).decode()


def _bake(settings: EngineSettings, engine: Engine, asked: Sequence[_Asked]) -> float:
    rows = [plan_row(place, prompt_of(one.messages, one.tokens)) for place, one in enumerate(asked)]
    report, seconds = bake_plan(settings, engine, rows)
    assert report.completion_tokens == sum(one.tokens for one in asked)  # noqa: S101
    return seconds


def _hits(llm: Any) -> int:
    """Prompt tokens that vLLM has taken from its prefix cache so far."""
    return sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:prefix_cache_hits")


def _most_hits(llm: Any, log: Sequence[_Asked]) -> int:
    """Tokens that the best of all orders takes from a cache without limits.

    A block of so many tokens is one with all before it. It is computed once; a prompt whose last token is in it
    computes it anyhow, because that token's output is what comes next (vLLM's KVCacheManager.get_computed_blocks).
    """
    from engine.vllm_request import RequestReader

    reader, size = RequestReader(llm, logprobs=False), llm.llm_engine.vllm_config.cache_config.block_size
    found, there = Counter[int](), Counter[int]()
    for one in log:
        _, engine_input = reader.read(Prompt(b"", _request(one), 1))
        ids = engine_input["prompt_token_ids"]
        prefix = 0
        for start in range(0, len(ids) - size + 1, size):
            prefix = hash((prefix, tuple(ids[start : start + size])))
            there[prefix] += 1
            found[prefix] += start + size < len(ids)
    shared: int = size * sum(min(count, there[prefix] - 1) for prefix, count in found.items())
    return shared
