"""How the example's model is taught, without the half hour it takes."""

from random import Random

import pytest

pytest.importorskip("torch", reason="the extra cpu is not installed: nothing here can be trained")

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from examples.corpus import HERE, ROUTES, SYSTEM, answers
from examples.train_model import IGNORED, MAX_LENGTH, batches, epoch, forward, held_out, training
from prebake.folding import fold_text

MODEL = HERE / "model"
MODEL_BYTES = 2_000_000


@pytest.fixture(scope="module")
def examples(words):
    return epoch(words, Random(3))


@pytest.fixture(scope="module")
def shipped():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


@pytest.mark.parametrize("route", ROUTES)
def test_no_test_question_is_trained_on(route):
    assert len(held_out(route)) > 3000
    assert not {fold_text(q.text) for q in training(route)} & {fold_text(q.text) for q in held_out(route)}


@pytest.mark.parametrize("route", ROUTES)
def test_answers_are_written_as_they_stand_and_end(words, route):
    for answer in answers(route).values():
        ids = words.write(answer)
        assert len(ids) <= 40
        assert words.writer.decode(ids) == answer
        assert words.writer.decode(ids, skip_special_tokens=False) == answer + "<|end|>"


def test_case_unicode_form_and_white_space_are_not_read(words):
    assert words.read("<|user|> My CARD\n is\N{NO-BREAK SPACE}lost") == words.read("<|user|> my card is lost")
    assert words.read("<|user|> ﬁne") == words.read("<|user|> fine")


def test_an_epoch_is_the_same_for_the_same_seed_and_differs_from_the_next(words, examples):
    random = Random(3)
    assert epoch(words, random) == examples
    assert epoch(words, random) != examples


def test_batches_hold_every_example_once(examples):
    some = examples[:1000]
    cut = batches(some, 64, Random(1))
    assert sorted((e.read, e.write) for batch in cut for e in batch) == sorted((e.read, e.write) for e in some)
    assert max(len(batch) for batch in cut) == 64


def test_only_the_answer_is_learnt(examples, model):
    batch = examples[:8]
    logits, labels = forward(model, batch)
    assert labels.tolist() == [token for example in batch for token in example.write]
    assert IGNORED not in labels
    assert logits.shape == (len(labels), model.config.vocab_size)


def test_padding_changes_no_prediction(examples, model):
    short, *_, long = sorted(examples[:100], key=lambda e: len(e.read) + len(e.write))
    alone, _ = forward(model, [short])
    beside, _ = forward(model, [short, long])
    torch.testing.assert_close(beside[: len(alone)], alone, rtol=1e-4, atol=1e-4)


def test_the_shipped_tokenizer_is_the_one_that_the_command_learns(words, shipped):
    assert shipped.get_vocab() == words.writer.get_vocab()
    for route in ROUTES:
        for question in held_out(route)[:200]:
            assert shipped(question.text)["input_ids"] == words.read(question.text)


def test_the_chat_template_writes_what_was_trained_on(words, shipped):
    messages = [
        {"role": "system", "content": SYSTEM["banking"]},
        {"role": "user", "content": "How do I activate my card?"},
        {"role": "assistant", "content": answers("banking")["activate_my_card"]},
        {"role": "user", "content": "and my PIN?"},
    ]
    prompt = shipped.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert words.read(prompt) == words.read(
        f"<|system|> {SYSTEM['banking']}<|user|> How do I activate my card?"
        f"<|assistant|>{answers('banking')['activate_my_card']}<|end|><|user|> and my PIN?<|assistant|>"
    )


def test_the_shipped_model_is_small_and_whole(model):
    files = [file for file in MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MODEL_BYTES
    assert "README.md" in {file.name for file in files}
    assert model.config.max_position_embeddings == MAX_LENGTH
    assert all(torch.isfinite(weights).all() for weights in model.parameters())
