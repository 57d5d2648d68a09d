"""Bake beside bare ``LLM.chat`` on a GPU at the shape of an 8B model: 512 tokens in, 256 out.

``ratio_vllm`` is tokens per second, ours over theirs, on the same loaded vLLM. The model has the shape of Llama 3.1 8B
and weights that nobody trained (``load_format="dummy"``): a token costs what it costs, and nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import Measured, interleaved
from benchmarks._plan import messages, prompt_of
from benchmarks.bake import bare, ours
from prebake.settings import Engine as EngineSettings
from tests.tiny_model import make_tiny_model

PROMPTS = 2000
ROUNDS = 3
TOKENS_IN, TOKENS_OUT = 512, 256
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
ARGS = {
    "load_format": "dummy",
    "dtype": "bfloat16",
    "max_model_len": 1024,
    # Without a prefix cache: it would make whoever runs second the faster one.
    "enable_prefix_caching": False,
    "disable_log_stats": True,
}


def unavailable() -> str:
    """Why this machine cannot run it."""
    import torch

    return "" if torch.cuda.is_available() else "needs a CUDA device, and there is none"


def run(size: int = PROMPTS, *, shape: dict[str, Any] = LLAMA_8B, rounds: int = ROUNDS) -> Measured:
    """Measure ``size`` prompts on a model of that ``shape`` (fields of a Llama's config.json)."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory(prefix="prebake-bench-") as folder:
        settings = EngineSettings(model=str(_write_model(Path(folder) / "model", shape)), args=ARGS)
        from vllm import LLM

        from engine.vllm_engine import VllmEngine

        llm = LLM(model=settings.model, **ARGS)
        engine = VllmEngine(settings, llm)
        prompts = [_prompt(llm.get_tokenizer(), number) for number in range(size)]
        contestants: dict[str, Callable[[], float]] = {
            "vllm": lambda: bare(llm, prompts, size, logprobs=0),
            "ours": lambda: ours(settings, engine, prompts),
        }
        for contestant in contestants.values():
            contestant()  # the first generation of a process compiles
        speeds = interleaved(contestants, rounds)
        engine.close()
    sizes = {"prompts": size, "tokens_in": TOKENS_IN, "tokens_out": TOKENS_OUT, "rounds": rounds}
    figures = {f"{name}_tokens_per_s": speed for name, speed in speeds.items()}
    return Measured({"ratio_vllm": speeds["ours"] / speeds["vllm"]}, sizes, figures)


def _write_model(folder: Path, shape: dict[str, Any]) -> Path:
    """The tiny model's tokenizer, with words enough for the shape's vocabulary, and a config of the shape."""
    make_tiny_model(folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words |= {f"Ġword{number}": number for number in range(len(words), shape["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | shape))
    return folder


def _prompt(tokenizer: Any, number: int) -> dict[str, Any]:
    """A prompt of 512 tokens with the chat template's own."""
    system, user = messages(number)
    asked = tokenizer.encode(f"{number} " + 60 * user["content"], add_special_tokens=False)
    frame = tokenizer.apply_chat_template([system, {"role": "user", "content": ""}], add_generation_prompt=True)
    room = TOKENS_IN - len(frame["input_ids"] if hasattr(frame, "keys") else frame)
    text = tokenizer.decode(asked[:room])
    return prompt_of([system, {"role": "user", "content": text}], TOKENS_OUT)
