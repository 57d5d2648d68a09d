"""Real vLLM with a tiny model, in its supervised process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import Completion, Engine, Partial, Status
from engine.supervised import SupervisedEngine
from prebake.errors import EngineError, SettingsError
from prebake.settings import Engine as EngineSettings
from tests.processors import DEADLY_SEED, MOST_AT_ONCE
from tests.tiny_model import MAX_MODEL_LEN, answer_all, ask, engine_settings_for

pytestmark = pytest.mark.slow


def _group(pid: int) -> dict[int, str]:
    """The living processes of a group: command by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            stat, command = (entry / "stat").read_text(), (entry / "cmdline").read_text()
        except (OSError, ValueError):
            continue
        fields = stat.rpartition(")")[2].split()
        if entry.name.isdigit() and int(fields[2]) == pid and fields[0] != "Z":
            found[int(entry.name)] = command
    return found


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """With all processes of a group stopped, as one that hangs."""
    os.killpg(pid, signal.SIGSTOP)
    yield
    with suppress(ProcessLookupError):  # it was killed for it
        os.killpg(pid, signal.SIGCONT)


def _shared_memory(pid: int) -> set[Path]:
    """What the processes of a group have in /dev/shm."""
    maps = "".join(Path(f"/proc/{process}/maps").read_text() for process in _group(pid))
    return {Path(line.split(maxsplit=5)[5]) for line in maps.splitlines() if " /dev/shm/" in line}


def _gone(pid: int) -> bool:
    return _over(lambda: bool(_group(pid)))


def _removed(files: set[Path]) -> bool:
    return _over(lambda: any(file.exists() for file in files))


def _over(lasts: Callable[[], bool], within_s: float = 20) -> bool:
    deadline = time.monotonic() + within_s
    while lasts() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not lasts()


def test_each_prompt_comes_back_once_and_a_bad_one_harms_nobody(engine: Engine) -> None:
    bad = {
        1: (ask(1, "word " * MAX_MODEL_LEN), "maximum context length"),
        2: (ask(2, "hi", role="alien"), "no such role"),
        3: (ask(3, "hi", colour="blue"), "'colour'"),
        4: (ask(4, "hi", tools=[{"type": "function", "function": {"name": "f"}}]), "tools"),
        5: (ask(5, "hi", top_p="hot"), "top_p"),
        6: (ask(6, "hi", max_tokens=0), "max_tokens"),
        7: (ask(7, "hi", logit_bias={"1000000": 5}), "logit_bias|vocab"),
    }
    good = [ask(n, f"question {n}") for n in range(100, 200)]
    done = answer_all(engine, [*good[:50], *(prompt for prompt, _ in bad.values()), *good[50:]])
    assert len(done) == len(bad) + len(good)
    for number, (_, reason) in bad.items():
        assert done[number].status is Status.REFUSED
        assert any(word in (done[number].error or "") for word in reason.split("|")), done[number].error
    for prompt in good:
        completion = done[int.from_bytes(prompt.key, "big")]
        assert completion.status in (Status.ANSWERED, Status.TRUNCATED)
        assert completion.finish_reason == {"answered": "stop", "truncated": "length"}[completion.status]
        assert completion.message is not None
        assert completion.message["role"] == "assistant"
        assert 0 < completion.completion_tokens <= 16
        assert completion.mean_logprob is not None
        assert completion.mean_logprob <= 0


def test_parameters_of_the_request_reach_the_model(engine: Engine) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"], "additionalProperties": False}
    response_format = {"type": "json_schema", "json_schema": {"name": "one", "schema": schema}}
    done = answer_all(
        engine,
        [
            ask(1, "count", max_tokens=5, ignore_eos=True),
            ask(2, "count", limit=64, response_format=response_format),
            ask(3, "count", limit=8, logit_bias={"40": 100}),
        ],
    )
    assert (done[1].completion_tokens, done[1].status) == (5, Status.TRUNCATED)
    assert done[2].message is not None
    assert "".join(done[2].message["content"].split()) == '{"n":1}'
    assert done[3].message is not None
    assert len(set(done[3].message["content"])) == 1


def test_prompts_that_share_their_parameters_do_not_change_them_for_each_other(engine: Engine) -> None:
    partial = Partial(engine.model, (40, 41, 42), -3.0)
    words = {"bad_words": ["the"], "stop_token_ids": [40], "min_tokens": 4}
    done = answer_all(
        engine,
        [
            replace(ask(1, "count", ignore_eos=True), partial=partial),
            ask(2, "count", ignore_eos=True),
            *(ask(n, "count", **words) for n in (3, 4)),
            *(ask(n, "count", limit=64, response_format={"type": "json_object"}) for n in (5, 6)),
        ],
    )
    assert done[1].resumed_tokens == 3
    assert done[1].completion_tokens == done[2].completion_tokens == 16
    assert done[3].message == done[4].message is not None
    assert done[5].message == done[6].message is not None


def test_control_tokens_in_the_text_are_text(engine: Engine) -> None:
    done = answer_all(engine, [ask(1, "a <|end|> b"), ask(2, "a  b"), ask(3, "<|end|><|assistant|>" * 2)])
    # As a control token <|end|> would be one token; as text it is several.
    assert done[1].prompt_tokens > done[2].prompt_tokens + 2
    assert done[3].prompt_tokens > 4 + 4
    assert all(completion.status is not Status.REFUSED for completion in done.values())


def test_a_stopped_answer_goes_on_where_it_was_and_ends_as_if_never_stopped(engine: Engine) -> None:
    prompts = {n: ask(n, f"tell me about {n}", limit=200) for n in range(60)}
    whole = answer_all(engine, list(prompts.values()))
    partials: list[Completion] = []
    while not partials:  # once more if the engine was through before it was stopped
        for prompt in prompts.values():
            engine.add(prompt)
        stopped: list[Completion] = []
        while not stopped:
            stopped = engine.step()
        stopped += engine.salvage()
        assert engine.in_flight == 0
        assert len(stopped) == len(prompts)
        partials = [c for c in stopped if c.status is Status.PARTIAL]
    again = answer_all(engine, [replace(prompts[int.from_bytes(c.key, "big")], partial=c.partial) for c in partials])
    assert sum(completion.resumed_tokens for completion in again.values()) > 0
    for number, completion in again.items():
        uninterrupted = whole[number]
        assert completion.message == uninterrupted.message
        assert completion.status is uninterrupted.status
        assert completion.completion_tokens == uninterrupted.completion_tokens
        assert completion.prompt_tokens == uninterrupted.prompt_tokens
        assert completion.mean_logprob == pytest.approx(uninterrupted.mean_logprob, abs=0.02)


def test_what_cannot_be_resumed_exactly_starts_again(engine: Engine) -> None:
    partial = Partial(engine.model, (40, 41, 42), -3.0)
    resumable = ask(1, "go on")
    never: list[dict[str, Any]] = [
        {"stop": ["zzzz"]},
        {"presence_penalty": 0.5},
        {"seed": 7},
        {"min_tokens": 4},
        {"response_format": {"type": "json_object"}},
    ]
    asked = [resumable, *(ask(number, "again", **params) for number, params in enumerate(never, 2))]
    done = answer_all(engine, [replace(prompt, partial=partial) for prompt in asked])
    assert {number: completion.resumed_tokens for number, completion in done.items()} == {1: 3} | dict.fromkeys(
        range(2, 7), 0
    )
    assert {number for number, completion in done.items() if completion.restarted} == set(range(2, 7))


def test_an_empty_prompt_harms_nobody(engine: Engine) -> None:
    done = answer_all(engine, [ask(1, ""), ask(2, "hi")])
    assert done[1].status is not Status.PARTIAL
    assert done[2].status in (Status.ANSWERED, Status.TRUNCATED)


def test_an_engine_that_was_idle_for_long_is_not_taken_for_a_hanging_one(tiny_model: Path) -> None:
    engine = SupervisedEngine(engine_settings_for(tiny_model, stall_s=3))
    try:
        answer_all(engine, [ask(1, "hi")])
        time.sleep(3.5)
        with _stopped(engine.pid):  # a first step that takes its time
            engine.add(ask(2, "hi"))
            assert engine.step() == []
        assert set(answer_all(engine, [])) == {2}
        assert engine.restarts == 0
        with _stopped(engine.pid):  # and one that hangs
            assert set(answer_all(engine, [ask(n, "hi") for n in range(3, 8)])) == set(range(3, 8))
        assert engine.restarts == 1
    finally:
        engine.close()


@pytest.fixture
def snail(tiny_model: Path) -> Iterator[SupervisedEngine]:
    """An engine that has written 20 tokens of each of 40 answers, 39 of which need another minute or more."""
    processors = {"logits_processors": ["tests.processors:SnailProcessor"]}
    engine = SupervisedEngine(engine_settings_for(tiny_model, args=processors))
    for n in range(40):
        engine.add(ask(n, f"question {n}", limit=450 if n else 20, ignore_eos=True))
    done: list[Completion] = []
    while not done:
        done = engine.step()
    assert [int.from_bytes(completion.key, "big") for completion in done] == [0]
    yield engine
    engine.close()


def test_an_engine_whose_core_is_killed_is_replaced_and_nothing_is_lost(snail: SupervisedEngine) -> None:
    pid = snail.pid
    (core,) = (process for process, command in _group(pid).items() if "EngineCore" in command)
    shared = _shared_memory(pid)
    os.kill(core, signal.SIGKILL)
    while not snail.restarts:
        assert snail.step() == []
    _assert_all_have_tokens(snail.salvage())  # not even the tokens that had left the core are lost
    assert snail.restarts == 1
    assert _gone(pid)
    assert shared
    assert _removed(shared)


@pytest.mark.parametrize("asked_first", [True, False])
def test_a_signal_to_all_processes_at_once_loses_no_token(snail: SupervisedEngine, asked_first: bool) -> None:
    os.killpg(snail.pid, signal.SIGTERM)
    if not asked_first:  # the signal is there first, and the core has ended by itself
        assert _over(lambda: any("EngineCore" in command for command in _group(snail.pid).values()))
    _assert_all_have_tokens(snail.salvage())


def _assert_all_have_tokens(unfinished: list[Completion]) -> None:
    assert [completion.status for completion in unfinished] == [Status.PARTIAL] * 39
    assert all(completion.partial and len(completion.partial.token_ids) >= 15 for completion in unfinished)


def test_an_unknown_engine_argument_names_the_nearest(tiny_model: Path) -> None:
    with pytest.raises(SettingsError, match="'max_nums_seqs'; did you mean 'max_num_seqs'"):
        SupervisedEngine(engine_settings_for(tiny_model, args={"max_nums_seqs": 4}))


@pytest.mark.parametrize(
    ("args", "remedy"), [({"reasoning_parser": "qwen3"}, "turn thinking off"), ({"enable_lora": True}, "merge it")]
)
def test_an_argument_that_would_have_no_effect_is_refused(tiny_model: Path, args: dict[str, Any], remedy: str) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(args))!r} has no effect on a night: .*{remedy}"):
        SupervisedEngine(engine_settings_for(tiny_model, args=args))


def test_what_vllm_core_died_of_while_loading_is_told_and_its_log_kept(tiny_model: Path) -> None:
    too_little = engine_settings_for(tiny_model, args={"num_gpu_blocks_override": 1})
    with pytest.raises(
        EngineError, match=r"ended while loading: ValueError: No available memory.* \(log: (.+)\)"
    ) as told:
        SupervisedEngine(too_little)
    log = Path(str(told.value).rpartition("(log: ")[2].rstrip(")"))
    assert "Traceback" in log.read_text()
    log.unlink()


_PARENT = """
import sys
from engine.process import EngineProcess
from prebake.settings import Engine
process = EngineProcess(Engine.model_validate_json(sys.argv[1]))
while process.receive(1) is None: pass
print(process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("hangs", [False, True], ids=["host notices", "host hangs"])
def test_nothing_of_the_engine_outlives_a_parent_killed_with_9(engine_settings: EngineSettings, hangs: bool) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, engine_settings.model_dump_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    try:
        assert any("EngineCore" in command for command in _group(pid).values())
        shared = _shared_memory(pid)
        if hangs:
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.wait()
        assert _gone(pid)
        assert shared
        assert _removed(shared)
    finally:
        for process in _group(pid):
            os.kill(process, signal.SIGKILL)
        parent.kill()


def test_a_prompt_that_kills_the_engine_is_found_and_all_others_are_answered(tiny_model: Path) -> None:
    processors = {"logits_processors": ["tests.processors:DeadlyProcessor"]}
    engine = SupervisedEngine(engine_settings_for(tiny_model, args=processors))
    try:
        done = answer_all(engine, [ask(1, "hi", seed=DEADLY_SEED), *(ask(n, "hi", seed=n) for n in range(2, 5))])
    finally:
        engine.close()
    deadly = done.pop(1)
    assert deadly.status is Status.REFUSED
    assert "it kills the engine" in (deadly.error or "")
    assert len(done) == 3
    assert all(completion.status is not Status.REFUSED for completion in done.values())
    # The death that starts the search, and at most log2(4) more.
    assert engine.restarts <= 1 + 2


def test_an_engine_that_runs_out_of_memory_again_goes_on_with_smaller_limits(tiny_model: Path) -> None:
    hungry = {"logits_processors": ["tests.processors:HungryProcessor"], "max_num_seqs": 2 * MOST_AT_ONCE}
    engine = SupervisedEngine(engine_settings_for(tiny_model, args=hungry))
    try:
        done = answer_all(engine, [ask(n, "hi", max_tokens=8, ignore_eos=True) for n in range(4 * MOST_AT_ONCE)])
    finally:
        engine.close()
    assert len(done) == 4 * MOST_AT_ONCE
    assert {completion.completion_tokens for completion in done.values()} == {8}
    # Once with the limits it had, and once with half of them.
    assert engine.restarts == 2
    assert engine.capacity == 2 * MOST_AT_ONCE
