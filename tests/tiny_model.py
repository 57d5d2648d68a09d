"""A tiny random Llama made on the spot: real weights, a real BPE tokenizer, a real chat template, made in seconds.

What it says is noise, but it is said by real vLLM: greedy answers repeat, and end of themselves or at the length limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine import Completion, Engine, Prompt, open_engine
from prebake.settings import Engine as EngineSettings

VOCABULARY = 1000
MAX_MODEL_LEN = 512

# Content must be text: `raise_exception` gives the tests a template that refuses.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'alien' %}{{ raise_exception('no such role: alien') }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CORPUS = [
    "How do I reset my password? Open the settings, choose security, then reset the password.",
    "What is the capital of France? The capital of France is Paris, a city on the river Seine.",
    "Where can I find my invoice? Your invoices are listed on the billing page of the account.",
    "Explain in one sentence why the sky is blue: short waves of light are scattered more than long ones.",
    "0123456789 The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs.",
]


def make_tiny_model(folder: Path, *, seed: int = 7, **larger: Any) -> Path:
    """Write config, weights, tokenizer and chat template into ``folder`` and return it.

    ``larger``: sizes by LlamaConfig's names, in place of the tiny ones.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]})
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)

    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_MODEL_LEN,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        # Wide random weights: greedy answers differ from prompt to prompt instead of all repeating one token.
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **(sizes | larger),
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def engine_settings(tiny_model: Path) -> EngineSettings:
    """Settings of real vLLM with the tiny model."""
    return engine_settings_for(tiny_model)


@pytest.fixture(scope="session")
def engine(engine_settings: EngineSettings) -> Iterator[Engine]:
    """Real vLLM with the tiny model, in its supervised process, loaded once for all tests."""
    opened = open_engine(engine_settings)
    yield opened
    opened.close()


def engine_settings_for(model: Path, **settings: Any) -> EngineSettings:
    """Settings under which vLLM loads a small model quickly."""
    args = {"enforce_eager": True, "dtype": "bfloat16", "max_model_len": MAX_MODEL_LEN, "max_num_seqs": 64}
    return EngineSettings(model=str(model), args=args | settings.pop("args", {}), **settings)


def ask(number: int, text: str, *, limit: int = 16, role: str = "user", **params: Any) -> Prompt:
    """A greedy prompt whose key is a number."""
    request = {"messages": [{"role": role, "content": text}], "model": "tiny", "params": params}
    return Prompt(number.to_bytes(16, "big"), orjson.dumps(request).decode(), limit, 0.0)


def answer_all(engine: Engine, prompts: list[Prompt]) -> dict[int, Completion]:
    """What came of each prompt, by its number."""
    for prompt in prompts:
        engine.add(prompt)
    done = {}
    while engine.in_flight:
        for completion in engine.step():
            number = int.from_bytes(completion.key, "big")
            assert number not in done, f"prompt {number} came back twice"
            done[number] = completion
    return done
