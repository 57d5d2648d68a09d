"""OpenAI's response shapes: a hit as one body or as a stream of chunks, and errors of our own.

In: a baked answer. Out: bytes ready to send, spliced around the answer's stored JSON (OpenAI API reference, "The chat
completion object" and "The chat completion chunk object").
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import orjson

from prebake.answer import Answer


def completion(answer: Answer, *, response_id: bytes, model: str) -> bytes:
    """The body of a hit that is not streamed. ``model`` is echoed as the client wrote it."""
    return (
        b'{"id":"%b","object":"chat.completion","created":%d,"model":%b,"choices":[{"index":0,"message":%b,'
        b'"logprobs":null,"finish_reason":"%b"}],"usage":%b}'
        % (
            response_id,
            answer.baked_us // 1_000_000,
            _quoted(model),
            answer.message_json,
            answer.finish_reason.encode(),
            _usage(answer),
        )
    )


def stream(answer: Answer, *, response_id: bytes, model: str, include_usage: bool) -> bytes:
    """The same hit as server-sent events: the role, what the message holds, the finish, the usage if asked, [DONE]."""
    head = b'data: {"id":"%b","object":"chat.completion.chunk","created":%d,"model":%b,' % (
        response_id,
        answer.baked_us // 1_000_000,
        _quoted(model),
    )
    tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
    events = [
        b'%b"choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":null}]%b'
        % (head, orjson.dumps(delta), tail)
        for delta in _deltas(answer.message)
    ]
    events.append(
        b'%b"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"%b"}]%b'
        % (head, answer.finish_reason.encode(), tail)
    )
    if include_usage:
        events.append(b'%b"choices":[],"usage":%b}\n\n' % (head, _usage(answer)))
    events.append(b"data: [DONE]\n\n")
    return b"".join(events)


def error(message: str, *, kind: str, code: str) -> bytes:
    """An error of the gateway's own in OpenAI's shape, so that clients raise their usual exceptions."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


@lru_cache(maxsize=256)
def _quoted(name: str) -> bytes:
    return orjson.dumps(name)


def _usage(answer: Answer) -> bytes:
    prompt, written = answer.prompt_tokens, answer.completion_tokens
    return b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (prompt, written, prompt + written)


def _deltas(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The message in pieces: reasoning, refusals and fields still to be invented come through like the content."""
    yield {"role": message.get("role", "assistant"), "content": "" if message.get("content") is not None else None}
    later = ("content", "tool_calls")
    for name in (*(name for name in message if name not in later), *later):
        value = message.get(name)
        if name == "role" or not value:
            continue
        if name == "tool_calls":
            value = [{"index": index, **call} for index, call in enumerate(value)]
        yield {name: value}
