"""The bytes of a hit: every stored message comes out whole, in one piece and in chunks alike."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.responses import completion, error, stream
from prebake.answer import Answer

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": texts,
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": texts, "arguments": texts}),
        }
    ),
    min_size=1,
    max_size=3,
)
messages = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | texts, "refusal": st.none() | texts},
    optional={"tool_calls": calls, "reasoning_content": texts},
)


def answer(message: dict[str, Any], finish_reason: str = "stop") -> Answer:
    at = datetime(2026, 11, 23, tzinfo=UTC)
    return Answer(
        b"f" * 16,
        route="faq",
        message_json=orjson.dumps(message),
        finish_reason=finish_reason,
        prompt_tokens=3,
        completion_tokens=4,
        model="night",
        run_id="run",
        baked_at=at,
        expires_at=at,
    )


def events(body: bytes) -> list[dict[str, Any]]:
    *chunks, done, rest = body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [orjson.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]


@given(message=messages, model=texts)
def test_a_whole_answer_has_the_message_as_stored_and_the_model_as_asked(message: dict[str, Any], model: str) -> None:
    body = orjson.loads(completion(answer(message), response_id=b"chatcmpl-1", model=model))
    ChatCompletion.model_validate(body, strict=True)
    assert body["model"] == model
    assert body["choices"][0]["message"] == message
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


@given(message=messages, include_usage=st.booleans())
def test_the_chunks_of_a_stream_add_up_to_the_message(message: dict[str, Any], include_usage: bool) -> None:
    body = stream(answer(message), response_id=b"chatcmpl-1", model="m", include_usage=include_usage)
    chunks = events(body)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        assert ("usage" in chunk) == include_usage
    if include_usage:
        assert chunks[-1]["choices"] == []
        assert chunks.pop()["usage"]["total_tokens"] == 7
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    for name in ("content", "refusal", "reasoning_content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == (message.get(name) or "")
    streamed = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [call.pop("index") for call in streamed] == list(range(len(streamed)))
    assert streamed == message.get("tool_calls", [])


def test_our_own_errors_have_openais_shape() -> None:
    body = orjson.loads(error("No.", kind="upstream_error", code="upstream_timeout"))
    assert body == {"error": {"message": "No.", "type": "upstream_error", "param": None, "code": "upstream_timeout"}}
