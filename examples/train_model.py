"""Train the example's model from nothing: a small Llama that answers the questions of examples/data.

In: the training questions, answers.toml. Out: a folder that vLLM and transformers load (shipped as examples/model), and
the share of held-out test questions that get exactly their intent's answer. The seed makes it repeatable on one machine
with the same PyTorch. It takes about half an hour on one thread; the extra ``cpu`` has all it needs.

    python -m examples.train_model OUT
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Final

import torch
import typer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.corpus import OUT_OF_SCOPE, ROUTES, SYSTEM, Question, RouteName, answers, questions
from prebake.folding import fold_text

VOCABULARY: Final = 2048
MAX_LENGTH: Final = 512
EPOCHS: Final = 10
BATCH: Final = 64
LEARNING_RATE: Final = 3e-3
WARM_UP_STEPS: Final = 300
PAD, END = "<|pad|>", "<|end|>"
SPECIAL: Final = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %}{{ message['content'] }}<|end|>"
    "{% else %} {{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PAD_ID, END_ID = SPECIAL.index(PAD), SPECIAL.index(END)  # the trainer numbers them first, in this order
IGNORED: Final = -100  # the label of a token that is read and not learnt (PyTorch's cross_entropy)

# Shares of the training examples that are changed, anew in each epoch, so that the model reads more than it was shown.
WITHOUT_SYSTEM: Final = 0.05
CONVERSATION: Final = 0.04
WORD_LOST: Final = 0.08  # of the words of a question
TYPING_ERROR: Final = 0.15


@dataclass(frozen=True)
class Example:
    """A tokenised conversation: what is read, then what is to be written."""

    read: list[int]
    write: list[int]


class Words:
    """The tokenizer's two sides: what is read is folded (case, Unicode form, white space), what is written is not."""

    def __init__(self, bpe: Tokenizer) -> None:
        self.writer = bpe
        self.reader = Tokenizer.from_str(bpe.to_str())
        self.reader.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")]
        )

    def read(self, text: str) -> list[int]:
        ids: list[int] = self.reader.encode(text).ids
        return ids

    def write(self, text: str) -> list[int]:
        return [*self.writer.encode(text).ids, END_ID]


def learn_words() -> Words:
    """A byte-level BPE of the training questions as they are read and the answers as they are written."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_all_text(), trainer)
    return Words(bpe)


def _all_text() -> Iterator[str]:
    for route in ROUTES:
        yield from (f" {question.text.lower()}" for question in training(route))
        # Each answer is written for a hundred questions; a dozen copies make its words short, and theirs not long.
        yield from (text for text in [SYSTEM[route].lower(), *answers(route).values()] for _ in range(12))


def training(route: RouteName) -> list[Question]:
    """The questions the model may learn from."""
    return [question for question in questions(route) if question.split in ("train", "oos_train")]


def held_out(route: RouteName) -> list[Question]:
    """The questions kept from it; the few that stand among the training questions in other spelling are left out."""
    known = {fold_text(question.text) for question in training(route)}
    kept = (question for question in questions(route) if question.split in ("test", "oos_test"))
    return [question for question in kept if fold_text(question.text) not in known]


def epoch(words: Words, random: Random) -> list[Example]:
    """Every training question once, in a new order and slightly changed."""
    examples = []
    for route in ROUTES:
        pool = training(route)
        # A hundred out-of-scope requests stand against 15,000 others.
        pool = pool + [question for question in pool if question.intent == OUT_OF_SCOPE] * 2
        examples += [_example(words, route, question, pool, random) for question in pool]
    random.shuffle(examples)
    return examples


def _example(words: Words, route: RouteName, question: Question, pool: Sequence[Question], random: Random) -> Example:
    text = "" if random.random() < WITHOUT_SYSTEM else f"<|system|> {SYSTEM[route]}"
    if random.random() < CONVERSATION:
        before = random.choice(pool)
        text += f"<|user|> {before.text}<|assistant|>{answers(route)[before.intent]}{END}"
    text += f"<|user|> {_worn(question.text, random)}<|assistant|>"
    return Example(words.read(text), words.write(answers(route)[question.intent]))


def _worn(text: str, random: Random) -> str:
    """The text with some words lost and, now and then, a typing error."""
    kept = [word for word in text.split() if random.random() >= WORD_LOST]
    text = " ".join(kept) or text
    if random.random() < TYPING_ERROR:
        place = random.randrange(len(text))
        text = text[:place] + random.choice(("", random.choice("abcdefghijklmnopqrstuvwxyz"))) + text[place + 1 :]
    return text


def batches(examples: Sequence[Example], size: int, random: Random | None) -> list[Sequence[Example]]:
    """Batches of like lengths, so that little is padded; in random order, or by length where no source is given."""
    window = size * 50
    cut: list[Sequence[Example]] = []
    for start in range(0, len(examples), window):
        near = sorted(examples[start : start + window], key=lambda e: len(e.read) + len(e.write))
        cut += [near[i : i + size] for i in range(0, len(near), size)]
    if random is not None:
        random.shuffle(cut)
    return cut


def forward(model: LlamaForCausalLM, batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of the tokens to be written, over the whole batch in one row."""
    length = max(len(example.read) + len(example.write) for example in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    labels = torch.full((len(batch), length), IGNORED)
    for row, example in enumerate(batch):
        ids[row, : len(example.read) + len(example.write)] = torch.tensor(example.read + example.write)
        # The token at one place is predicted from the place before.
        labels[row, len(example.read) - 1 : len(example.read) - 1 + len(example.write)] = torch.tensor(example.write)
    # Padding stands at the end, where a causal model cannot see it: no attention mask is needed.
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    written = labels != IGNORED
    return model.lm_head(hidden[written]), labels[written]


def train(words: Words, *, epochs: int, seed: int) -> LlamaForCausalLM:
    """A model trained for that many epochs; prints loss per token and accuracy on CLINC150's validation set."""
    validation = [question for question in questions("assistant") if question.split == "val"][::5]
    torch.manual_seed(seed)
    random = Random(seed)
    model = LlamaForCausalLM(_config(words))
    steps = epochs * math.ceil(len(epoch(words, Random(seed))) / BATCH)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / WARM_UP_STEPS, 0.5 * (1 + math.cos(math.pi * min(s / steps, 1))))
    )
    started = time.monotonic()
    for number in range(epochs):
        total = tokens = 0.0
        for batch in batches(epoch(words, random), BATCH, random):
            logits, labels = forward(model, batch)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
            tokens += len(labels)
        share = accuracy(model, words, "assistant", validation)
        seconds = time.monotonic() - started
        typer.echo(
            f"epoch {number + 1} of {epochs}: loss {total / tokens:.4f}, validation {share:.1%}, {seconds:.0f} s"
        )
    return model


def _config(words: Words) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=words.writer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )


def accuracy(model: LlamaForCausalLM, words: Words, route: RouteName, asked: Iterable[Question]) -> float:
    """The share of the questions whose greedy answer is exactly their intent's.

    Greedy decoding writes an answer exactly when each of its tokens is the likeliest after those before it, so one pass
    over question and answer tells.
    """
    prompts = [
        Example(
            words.read(f"<|system|> {SYSTEM[route]}<|user|> {question.text}<|assistant|>"),
            words.write(answers(route)[question.intent]),
        )
        for question in asked
    ]
    right = 0
    for batch in batches(prompts, 128, None):
        with torch.no_grad():
            logits, labels = forward(model, batch)
        hits = (logits.argmax(-1) == labels).split([len(example.write) for example in batch])
        right += sum(bool(hit.all()) for hit in hits)
    return right / len(prompts)


def save(model: LlamaForCausalLM, words: Words, folder: Path) -> None:
    """Write config, weights in bfloat16, tokenizer, chat template and generation settings."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.reader, pad_token=PAD, eos_token=END, model_max_length=MAX_LENGTH
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    _rewrite(folder / "tokenizer.json", indent=None)  # without line breaks it is half the size
    # transformers 5 writes a class of its own; this name is known to 4 as well.
    _rewrite(folder / "tokenizer_config.json", indent=2, tokenizer_class="PreTrainedTokenizerFast")
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=END_ID, pad_token_id=PAD_ID)
    model.to(torch.bfloat16).save_pretrained(folder)


def _rewrite(file: Path, *, indent: int | None, **changes: str) -> None:
    content = json.loads(file.read_text("utf-8")) | changes
    separators = (",", ":") if indent is None else (",", ": ")
    file.write_text(json.dumps(content, ensure_ascii=False, indent=indent, separators=separators) + "\n", "utf-8")


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write the model to.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training questions.")] = EPOCHS,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order.")] = 1,
) -> None:
    """Train the example's model and measure it on the test questions."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    words = learn_words()
    model = train(words, epochs=epochs, seed=seed)
    save(model, words, out)
    measure(model.float(), words)  # after the rounding to bfloat16, as it was saved


def measure(model: LlamaForCausalLM, words: Words) -> None:
    """Print the share of the test questions that get exactly their intent's answer."""
    for route in ROUTES:
        known = [question for question in held_out(route) if question.intent != OUT_OF_SCOPE]
        share = accuracy(model, words, route, known)
        typer.echo(f"{route}: {share:.1%} of {len(known)} test questions get exactly their intent's answer")
    lost = [question for question in held_out("assistant") if question.intent == OUT_OF_SCOPE]
    typer.echo(f"out of scope: {accuracy(model, words, 'assistant', lost):.1%} of {len(lost)} are told so")


if __name__ == "__main__":
    typer.run(main)
