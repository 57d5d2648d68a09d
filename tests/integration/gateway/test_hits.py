"""A hit is an answer as OpenAI gives it: proven with OpenAI's own client, which checks every field's type."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.gateway_bed import Running, ask
from tests.integration.gateway.conftest import CALLS, CAPITAL, PARIS, TOOL_QUESTION, TOOLS


def streamed(client: openai.OpenAI, **request: Any) -> tuple[dict[str, Any], list[ChatCompletionChunk]]:
    """What the client's own accumulator makes of a stream, and the chunks."""
    with client.chat.completions.stream(**request) as events:
        chunks = [event.chunk for event in events if event.type == "chunk"]
    return events.get_final_completion().choices[0].message.to_dict(), chunks


def test_a_baked_answer_comes_back_in_openais_shape(gateway: Running) -> None:
    raw = gateway.client.chat.completions.with_raw_response.create(**ask(CAPITAL))
    answer = raw.parse()
    assert isinstance(ChatCompletion.model_validate(answer.to_dict(), strict=True), ChatCompletion)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", PARIS)
    assert answer.usage is not None
    assert answer.usage.to_dict() == {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}


def test_the_headers_of_a_hit_say_so_and_how_old_it_is(gateway: Running) -> None:
    headers = httpx.post(f"{gateway.url}/v1/chat/completions", json=ask(CAPITAL)).headers
    assert headers["x-prebake"] == "hit"
    assert headers["x-prebake-run"] == "run-1"
    assert headers["x-prebake-snapshot"] == gateway.ready()["snapshot"]
    assert 3 * 3600 <= int(headers["age"]) < 4 * 3600
    assert headers["content-type"] == "application/json"


def test_each_answer_has_its_own_id(gateway: Running) -> None:
    ids = {gateway.client.chat.completions.create(**ask(CAPITAL)).id for _ in range(5)}
    assert len(ids) == 5


def test_a_streamed_and_an_unstreamed_request_share_one_answer(gateway: Running) -> None:
    whole = gateway.client.chat.completions.create(**ask(CAPITAL)).choices[0].message
    message, chunks = streamed(gateway.client, **ask(CAPITAL))
    assert message["content"] == whole.content == PARIS
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks] == [None, None, "stop"]
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


def test_usage_is_streamed_only_when_asked_for(gateway: Running) -> None:
    _, chunks = streamed(gateway.client, **ask(CAPITAL), stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 17
    assert [c.usage for c in chunks[:-1]] == [None] * 3


def test_a_stream_ends_with_done(gateway: Running) -> None:
    response = httpx.post(f"{gateway.url}/v1/chat/completions", json=ask(CAPITAL, stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\ndata: [DONE]\n\n")


def test_tool_calls_survive_unstreamed_and_streamed(gateway: Running) -> None:
    request = ask(TOOL_QUESTION, tools=TOOLS)
    choice = gateway.client.chat.completions.create(**request).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [call.to_dict() for call in choice.message.tool_calls or []] == CALLS
    message, chunks = streamed(gateway.client, **request)
    calls = [{name: call[name] for name in ("id", "type", "function")} for call in message["tool_calls"]]
    assert [{**c, "function": {k: c["function"][k] for k in ("name", "arguments")}} for c in calls] == CALLS
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("question", "field", "value"),
    [("Six times seven?", "reasoning_content", "6 times 7"), ("Do evil", "refusal", "I will not.")],
)
def test_reasoning_and_refusals_survive_both_ways(gateway: Running, question: str, field: str, value: str) -> None:
    whole = gateway.client.chat.completions.create(**ask(question)).choices[0].message.to_dict()
    assert whole[field] == value
    deltas = [
        chunk.choices[0].delta.to_dict()
        for chunk in gateway.client.chat.completions.create(**ask(question), stream=True)
    ]
    assert "".join(delta.get(field) or "" for delta in deltas) == value


def test_the_same_meaning_is_a_hit_and_another_meaning_is_not(gateway: Running) -> None:
    def outcome(**request: Any) -> str:
        return httpx.post(f"{gateway.url}/v1/chat/completions", json=request).headers["x-prebake"]

    assert outcome(**ask("  what is the CAPITAL of france", temperature=1.0, user="joe", stream=False)) == "hit"
    assert outcome(**ask(CAPITAL, max_tokens=5)) == "miss"
    assert outcome(**ask("What is the capital of Spain?")) == "miss"
    assert outcome(**ask("Is France the capital of what?")) == "miss"
    assert outcome(**ask(CAPITAL, n=2)) == "bypass"


def test_an_answer_of_a_tenant_is_given_to_that_tenant_alone(gateway: Running) -> None:
    def outcome(headers: list[tuple[str, str]], **fields: Any) -> tuple[str, str | None]:
        request = ask("My secret?", model="mine", **fields)
        response = httpx.post(f"{gateway.url}/v1/chat/completions", json=request, headers=headers)
        return response.headers["x-prebake"], response.headers.get("x-prebake-reason")

    assert outcome([("x-tenant", "a")]) == ("hit", None)
    assert outcome([("x-tenant", "b")]) == ("miss", "not_baked")
    assert outcome([]) == ("bypass", "no_tenant")
    assert outcome([("x-tenant", "b"), ("x-tenant", "a")]) == ("bypass", "no_tenant")
    assert outcome([], user="a", tenant="a") == ("bypass", "no_tenant")


async def hit_with_the_async_client(client: openai.AsyncOpenAI) -> str:
    """A stream through the asynchronous client."""
    chunks = await client.chat.completions.create(**ask(CAPITAL), stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


def test_the_asynchronous_client_reads_the_same(gateway: Running) -> None:
    import asyncio

    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0)
    assert asyncio.run(hit_with_the_async_client(client)) == PARIS
