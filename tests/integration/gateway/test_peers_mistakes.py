"""What users reported of other caches in front of a model, each as a test: here it cannot happen."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from engine import Completion, Prompt, Status
from prebake.errors import SnapshotError
from prebake.settings import Settings
from storage.store import open_store
from tasks.bake import bake
from tasks.publish import publish as publish_night
from tests.baking import PLAN_ID, add_plan, committed, question
from tests.gateway_bed import Running, answer_to, ask, gateway_server, publish, settings_of
from tests.parrot_engine import ParrotEngine

ANSWERED = "Is a tomato a fruit or a vegetable?"
REVERSALS = [
    ("Is the sun bigger than the moon?", "Is the moon bigger than the sun?"),
    ("How do I merge develop into main?", "How do I merge main into develop?"),
    ("May I drink alcohol with this pill?", "May I not drink alcohol with this pill?"),
    ("Convert 5 miles to kilometres", "Convert 5 kilometres to miles"),
    ("Is it safe to enable this?", "Is it safe to disable this?"),
]
THOUGHTS = {
    "reasoning_content": {"role": "assistant", "content": "42", "reasoning_content": "6 times 7"},
    "reasoning": {"role": "assistant", "content": "42", "reasoning": "6 times 7"},
    "thinking_blocks": {"role": "assistant", "content": "42", "thinking_blocks": [{"thinking": "6 times 7"}]},
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, upstream: Running) -> Any:
    """A gateway of its own with answers to these questions."""
    folder = tmp_path_factory.mktemp("peers")
    settings = settings_of(folder)
    answers = [answer_to(settings, ask(ANSWERED), "A fruit.")]
    answers += [answer_to(settings, ask(asked), f"To: {asked}") for asked, _ in REVERSALS]
    answers += [answer_to(settings, ask(f"By {name}?"), message) for name, message in THOUGHTS.items()]
    publish(folder, answers)
    with gateway_server(folder, upstream.url) as server:
        yield server


def outcome(server: Running, body: dict[str, Any]) -> str:
    """Hit, miss or bypass."""
    return httpx.post(f"{server.url}/v1/chat/completions", json=body).headers["x-prebake"]


@pytest.mark.parametrize("field", THOUGHTS)
def test_reasoning_is_not_lost_on_a_streamed_hit(shop: Running, field: str) -> None:
    """BerriAI/litellm#32068, vllm-project/semantic-router#2140: streams were rebuilt from a list of known fields."""
    request = ask(f"By {field}?")
    assert outcome(shop, request) == "hit"
    whole = shop.client.chat.completions.create(**request).choices[0].message.to_dict()
    deltas = [c.choices[0].delta.to_dict() for c in shop.client.chat.completions.create(**request, stream=True)]
    assert [delta[field] for delta in deltas if field in delta] == [whole[field]] == [THOUGHTS[field][field]]
    assert [delta["content"] for delta in deltas if delta.get("content")] == ["42"]


def test_streamed_requests_hit_from_the_first_on(shop: Running) -> None:
    """vllm-project/semantic-router#2030 (and #1555, #913): 10 of 10 whole requests hit there, 0 of 10 streamed."""
    assert [outcome(shop, ask(ANSWERED, stream=True)) for _ in range(10)] == ["hit"] * 10
    response = httpx.post(f"{shop.url}/v1/chat/completions", json=ask(ANSWERED, stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")


class SilentEngine(ParrotEngine):
    """A model that ends each answer before its first word."""

    def _answer(self, prompt: Prompt) -> Completion:
        """Nothing but white space."""
        silence = {"role": "assistant", "content": " \n"}
        return Completion(prompt.key, Status.ANSWERED, finish_reason="stop", message=silence)


def test_an_empty_answer_is_neither_stored_nor_served(settings: Settings) -> None:
    """BerriAI/litellm#40294: a response without choices was cached and served as a 200 from then on."""
    with open_store(settings) as store:
        add_plan(store, settings, [question(1), question(2)])
        report = bake(store, settings, PLAN_ID, run_id="run", owner="me", engine=SilentEngine())
        assert (report.answers, report.refused) == (0, 2)
        [said] = {(row["status"], row["message"], row["error"]) for row in committed(store)}
        assert said == ("refused", None, "the model said nothing")
        assert publish_night(store, settings, run_id="run", now=datetime.now(UTC)).answers == 0


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"role": "assistant"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": []},
        {"role": "assistant", "content": "", "reasoning_content": "thought, then nothing said"},
        {"role": "assistant", "content": " \n\t"},
        {"role": "assistant", "content": []},
    ],
    ids=lambda message: orjson.dumps(message).decode(),
)
def test_no_snapshot_can_hold_an_empty_answer(tmp_path: Path, message: dict[str, Any]) -> None:
    settings = settings_of(tmp_path)
    with pytest.raises(SnapshotError, match="says nothing"):
        publish(tmp_path, [answer_to(settings, ask("What?"), message)])


def test_an_upstreams_error_is_not_remembered(shop: Running) -> None:
    """vllm-project/semantic-router#2130: a 400 or a 503 was stored and given to others as a 200."""
    url = f"{shop.url}/v1/chat/completions"
    assert [httpx.post(url, json=ask("Hm?", "broken")).status_code for _ in range(2)] == [503, 503]
    assert outcome(shop, ask("Hm?")) == "miss"


@pytest.mark.parametrize("asked", ["Hello world", "What is 1+1?", "How's the weather?", "Is a tomato a fruit?", ""])
def test_another_question_is_never_given_this_answer(shop: Running, asked: str) -> None:
    """BerriAI/litellm#12234: with a similarity threshold every question got the first one's answer."""
    assert outcome(shop, ask(ANSWERED)) == "hit"
    assert outcome(shop, ask(asked)) == "miss"


@pytest.mark.parametrize(("asked", "reversed_"), REVERSALS, ids=[asked for asked, _ in REVERSALS])
def test_a_question_and_its_reversal_are_two_questions(shop: Running, asked: str, reversed_: str) -> None:
    """zilliztech/GPTCache#694: reversals scored 0.83 to 0.9997 in similarity, above any threshold in use."""
    assert outcome(shop, ask(asked)) == "hit"
    assert outcome(shop, ask(reversed_)) == "miss"


def test_the_order_of_words_is_part_of_the_question(shop: Running) -> None:
    words = ANSWERED.split()
    swapped = [[*words[:n], words[n + 1], words[n], *words[n + 2 :]] for n in range(len(words) - 1)]
    turned = [words[n:] + words[:n] for n in range(1, len(words))]
    assert {outcome(shop, ask(" ".join(order))) for order in swapped + turned} == {"miss"}


def test_the_same_words_in_another_conversation_are_another_question(shop: Running) -> None:
    """vllm-project/semantic-router#36: only the last user message was the key."""
    before = [{"role": "user", "content": "Let us talk in Latin."}, {"role": "assistant", "content": "Ita."}]
    last = {"role": "user", "content": ANSWERED}
    assert outcome(shop, {"model": "tiny", "messages": [*before, last]}) == "miss"
    assert outcome(shop, {"model": "tiny", "messages": [{"role": "system", "content": "Lie."}, last]}) == "miss"
