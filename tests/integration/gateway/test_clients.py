"""The clients people use, hits and misses alike: OpenAI's own in all its calls, litellm's, LangChain's chat model.

What comes back is validated strictly by the client's own response types: a field of another type would be an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseCompletedEvent
from pydantic import BaseModel

from tests.gateway_bed import Running, ask
from tests.integration.gateway.conftest import CALLS, CAPITAL, PARIS, TOOL_QUESTION, TOOLS

OPEN = "Nobody asked this before?"
WORDS = "one two three"
THOUGHT = "Six times seven?"
EVIL = "Do evil"


def outcomes(gateway: Running) -> tuple[openai.OpenAI, list[str]]:
    """A client, and what the gateway says of each of its requests."""
    said: list[str] = []

    def note(response: httpx.Response) -> None:
        said.append(response.headers["x-prebake"])

    http = httpx.Client(event_hooks={"response": [note]})
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk-test", max_retries=0, http_client=http), said


def strict(answer: BaseModel, kind: type[BaseModel], *, extra: frozenset[str] = frozenset()) -> None:
    """The client's own type takes the answer as it is, and nothing in it is unknown to that type but ``extra``."""
    raw = answer.to_dict(mode="json") if isinstance(answer, openai.BaseModel) else answer.model_dump(mode="json")
    kind.model_validate(raw, strict=True)
    assert unknown(answer) <= extra


def unknown(model: BaseModel) -> set[str]:
    """The fields at any depth that the types do not have."""
    found = set(model.model_extra or {})
    for name in type(model).model_fields:
        value = getattr(model, name, None)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, BaseModel):
                found |= unknown(inner)
    return found


@pytest.mark.parametrize(
    ("request_", "expected", "extra"),
    [
        (ask(CAPITAL), "hit", set()),
        (ask(TOOL_QUESTION, tools=TOOLS), "hit", set()),
        (ask(THOUGHT), "hit", {"reasoning_content"}),
        (ask(EVIL), "hit", set()),
        (ask(OPEN), "miss", set()),
        (ask(CAPITAL, n=2), "bypass", set()),
    ],
    ids=["text", "tools", "reasoning", "refusal", "miss", "bypass"],
)
def test_openais_own_types_take_every_answer_whole_and_streamed(
    gateway: Running, request_: dict[str, Any], expected: str, extra: set[str]
) -> None:
    client, said = outcomes(gateway)
    strict(client.chat.completions.create(**request_), ChatCompletion, extra=frozenset(extra))
    for chunk in client.chat.completions.create(**request_, stream=True):
        strict(chunk, ChatCompletionChunk, extra=frozenset(extra))
    assert said == [expected] * 2


class Capital(BaseModel):
    """A structured answer."""

    city: str


def test_structured_output_is_parsed_by_the_clients_helper(gateway: Running) -> None:
    client, said = outcomes(gateway)
    request = ask("The capital of France, structured")
    parsed = client.chat.completions.parse(**request, response_format=Capital)
    assert parsed.choices[0].message.parsed == Capital(city="Paris")
    with client.chat.completions.stream(**request, response_format=Capital) as events:
        assert events.get_final_completion().choices[0].message.parsed == Capital(city="Paris")
    assert said == ["hit"] * 2
    # Another schema is another question.
    client.chat.completions.create(**request)
    assert said[-1] == "miss"


@pytest.mark.parametrize(
    "field",
    [
        {"seed": 7},
        {"max_completion_tokens": 9},
        {"stop": ["\n"]},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"frequency_penalty": 0.5},
        {"logit_bias": {"50256": -100}},
        {"reasoning_effort": "low"},
        {"verbosity": "low"},
        {"response_format": {"type": "json_object"}},
        {"tools": TOOLS},
        {"tool_choice": "required", "tools": TOOLS},
        {"functions": [{"name": "weather"}]},
        {"prediction": {"type": "content", "content": "x"}},
        {"extra_body": {"top_k": 5}},
    ],
    ids=lambda field: next(iter(field)) if isinstance(field, dict) else field,
)
def test_a_field_that_changes_the_answer_is_never_answered_without_it(gateway: Running, field: dict[str, Any]) -> None:
    client, said = outcomes(gateway)
    client.chat.completions.create(**ask(CAPITAL), **field)
    assert said == ["miss"]


@pytest.mark.parametrize(
    "field",
    [
        {"user": "joe"},
        {"metadata": {"a": "b"}},
        {"store": True},
        {"service_tier": "flex"},
        {"safety_identifier": "joe"},
        {"prompt_cache_key": "k"},
        {"n": 1},
        {"logprobs": False},
        {"parallel_tool_calls": True},
        {"stream": True, "stream_options": {"include_usage": True}},
    ],
    ids=lambda field: next(iter(field)) if isinstance(field, dict) else field,
)
def test_a_field_that_does_not_change_the_answer_costs_no_hit(gateway: Running, field: dict[str, Any]) -> None:
    client, said = outcomes(gateway)
    client.chat.completions.create(**ask(CAPITAL), **field)
    assert said == ["hit"]


@pytest.mark.parametrize("field", [{"logprobs": True}, {"logprobs": True, "top_logprobs": 2}, {"n": 3}])
def test_what_the_store_does_not_have_is_asked_of_the_upstream(gateway: Running, field: dict[str, Any]) -> None:
    client, said = outcomes(gateway)
    client.chat.completions.create(**ask(CAPITAL), **field)
    assert said == ["bypass"]


def test_completions_responses_embeddings_and_models_are_the_upstreams(gateway: Running) -> None:
    client, said = outcomes(gateway)
    strict(client.completions.create(model="tiny", prompt="Count"), Completion)
    streamed = list(client.completions.create(model="tiny", prompt="Count", stream=True))
    assert "".join(part.choices[0].text for part in streamed) == WORDS
    response = client.responses.create(model="tiny", input="Count")
    strict(response, Response)
    assert response.output_text == WORDS
    events = list(client.responses.create(model="tiny", input="Count", stream=True))
    assert isinstance(events[-1], ResponseCompletedEvent)
    assert events[-1].response.output_text == WORDS
    strict(client.embeddings.create(model="tiny", input="x", encoding_format="float"), CreateEmbeddingResponse)
    for model in client.models.list():
        strict(model, Model)
    assert said == ["bypass"] * 6


@pytest.fixture(scope="module")
def litellm_of(gateway: Running) -> Callable[..., Any]:
    """litellm's completion(), pointed at the gateway; its price list is the one it carries."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

    def complete(**request: Any) -> Any:
        model = f"openai/{request.pop('model')}"
        return litellm.completion(
            model=model, api_base=f"{gateway.url}/v1", api_key="sk-test", max_retries=0, **request
        )

    return complete


def test_litellm_reads_hits_and_misses_whole_and_streamed(litellm_of: Callable[..., Any]) -> None:
    for question, text in [(CAPITAL, PARIS), (OPEN, WORDS)]:
        assert litellm_of(**ask(question)).choices[0].message.content == text
        chunks = litellm_of(**ask(question), stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text


def test_litellm_reads_tool_calls_and_reasoning_of_a_hit_both_ways(litellm_of: Callable[..., Any]) -> None:
    import litellm

    request = ask(TOOL_QUESTION, tools=TOOLS)
    whole = litellm_of(**request).choices[0].message.tool_calls
    assert [(call.id, call.function.arguments) for call in whole] == [
        (call["id"], call["function"]["arguments"]) for call in CALLS
    ]
    rebuilt = litellm.stream_chunk_builder(list(litellm_of(**request, stream=True))).choices[0].message.tool_calls
    assert [(call.id, call.function.arguments) for call in rebuilt] == [
        (call.id, call.function.arguments) for call in whole
    ]
    assert litellm_of(**ask(THOUGHT)).choices[0].message.reasoning_content == "6 times 7"
    thought = litellm.stream_chunk_builder(list(litellm_of(**ask(THOUGHT), stream=True)))
    assert thought.choices[0].message.reasoning_content == "6 times 7"
    assert thought.choices[0].message.content == "42"


def langchain(gateway: Running) -> Any:
    """LangChain's chat model, pointed at the gateway."""
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="tiny", base_url=f"{gateway.url}/v1", api_key="sk-test", max_retries=0)


def test_langchains_chat_model_reads_hits_and_misses(gateway: Running) -> None:
    model = langchain(gateway)
    for question, text in [(CAPITAL, PARIS), (OPEN, WORDS)]:
        assert model.invoke(question).content == text
        assert "".join(str(part.content) for part in model.stream(question)) == text
    usage = model.invoke(CAPITAL).usage_metadata
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (12, 5, 17)


def test_langchains_asynchronous_calls_read_the_same(gateway: Running) -> None:
    async def said() -> list[str]:
        model = langchain(gateway)
        answers = await model.abatch([CAPITAL, OPEN])
        return [answer.content for answer in answers]

    assert asyncio.run(said()) == [PARIS, WORDS]


def test_langchains_tool_calls_come_from_a_hit_both_ways(gateway: Running) -> None:
    model = langchain(gateway)
    whole = model.invoke(TOOL_QUESTION, tools=TOOLS)
    assert [(call["id"], call["args"]) for call in whole.tool_calls] == [
        ("call_1", {"city": "Paris"}),
        ("call_2", {"city": "Lyon"}),
    ]
    parts = list(model.stream(TOOL_QUESTION, tools=TOOLS))
    added = parts[0]
    for part in parts[1:]:
        added += part
    assert added.tool_calls == whole.tool_calls
