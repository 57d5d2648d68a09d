"""What the shipped model answers, in transformers and in vLLM."""

import os

import pytest

pytest.importorskip("torch", reason="the extra cpu is not installed: no model can be run")

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from examples.corpus import HERE, OUT_OF_SCOPE, ROUTES, SYSTEM, answers
from examples.train_model import accuracy, held_out
from prebake import loading

MODEL = HERE / "model"


def chat(route, question):
    return [{"role": "system", "content": SYSTEM[route]}, {"role": "user", "content": question.text}]


@pytest.fixture(scope="module")
def model():
    return LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


@pytest.mark.parametrize("route", ROUTES)
def test_three_of_four_unseen_questions_get_their_intents_answer(model, words, route):
    asked = [question for question in held_out(route) if question.intent != OUT_OF_SCOPE]
    assert accuracy(model, words, route, asked[::10]) > 0.75


def test_generating_token_by_token_gives_what_the_accuracy_counts(model, words):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for question in held_out("banking")[::500]:
        ids = tokenizer.apply_chat_template(chat("banking", question), add_generation_prompt=True, return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=48)[0, ids["input_ids"].shape[1] :]
        right = tokenizer.decode(written, skip_special_tokens=True) == answers("banking")[question.intent]
        assert right == (accuracy(model, words, "banking", [question]) == 1)


@pytest.mark.slow
def test_vllm_serves_it_with_the_examples_settings():
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    vllm = pytest.importorskip("vllm", reason="the extra cpu is not installed: no engine can be started")
    effective = loading.load(HERE / "prebake.toml").engine
    engine = vllm.LLM(effective.model, **effective.args)
    asked = [(route, question) for route in ROUTES for question in held_out(route)[::150] if question.intent != "oos"]
    outputs = engine.chat(
        [chat(route, question) for route, question in asked],
        vllm.SamplingParams(temperature=0, max_tokens=48),
        use_tqdm=False,
    )
    right = [
        output.outputs[0].text == answers(route)[question.intent]
        for output, (route, question) in zip(outputs, asked, strict=True)
    ]
    assert all(output.outputs[0].finish_reason == "stop" for output in outputs)
    assert sum(right) > 0.7 * len(right)
