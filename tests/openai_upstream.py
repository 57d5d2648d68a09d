"""A small real model server for the gateway's tests: OpenAI's protocol over real HTTP, and the ways in which it fails.

What it does is chosen by the model's name; what reached it is shown at ``/seen``.
Run: ``python openai_upstream.py PORT``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

seen: list[dict[str, Any]] = []
counts = {"cancelled": 0}
gate = asyncio.Event()
MARK = (b"x-test-upstream", b"1")
WORDS = ["one ", "two ", "three"]


async def marked(scope: Scope, receive: Receive, send: Send) -> None:
    """The server, whose every answer says that it is its own, failures of the application too."""

    async def mark(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], MARK]
        await send(message)

    await app(scope, receive, mark)


async def chat(request: Request) -> Response:
    """Answer as the model's name says."""
    raw = await request.body()
    seen.append(
        {
            "path": request.url.path,
            "query": request.url.query,
            "headers": [[name.decode(), value.decode("latin-1")] for name, value in request.headers.raw],
            "body": raw[:1000].decode("utf-8", "replace"),
            "size": len(raw),
        }
    )
    del seen[:-50]
    try:
        body = orjson.loads(raw)
        model = body["model"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return refuse(400, "invalid body", "invalid_request_error")
    if not isinstance(model, str) or not isinstance(body.get("messages"), list):
        return refuse(400, "invalid body", "invalid_request_error")
    if model == "busy":
        return refuse(429, "slow down", "rate_limit", {"retry-after": "7", "x-ratelimit-remaining-requests": "0"})
    if model == "broken":
        return Response(b"<h1>oops</h1>", 503, {"content-type": "text/html"})
    if model == "silent":
        await asyncio.sleep(30)
    if "gated" in model:
        await gate.wait()
    if model == "gated-busy":
        return refuse(429, "slow down", "rate_limit", {"retry-after": "7"})
    if body.get("stream"):
        return StreamingResponse(stream(model, gate), media_type="text/event-stream")
    return JSONResponse(completion(model, "".join(WORDS)), headers={"x-request-id": "req_1"})


async def stream(model: str, opened: asyncio.Event) -> AsyncIterator[bytes]:
    """Three words; ``dies`` breaks off after two, ``held`` waits after the first of 99, ``endless`` never stops.

    ``stepwise`` waits after each word until the gate is opened.
    """
    try:
        yield event(model, {"role": "assistant", "content": ""})
        for number, word in enumerate(WORDS * {"held": 33, "endless": 10_000}.get(model, 1)):
            if model == "held" and number == 1:
                await opened.wait()
            if model == "dies" and number == 2:
                raise ConnectionResetError("the server dies")
            yield event(model, {"content": word})
            await (gate.wait() if model == "stepwise" else asyncio.sleep(0.0 if model == "held" else 0.02))
        yield event(model, {}, "stop")
        yield b"data: [DONE]\n\n"
    except asyncio.CancelledError:
        counts["cancelled"] += 1
        raise


def event(model: str, delta: dict[str, Any], finish: str | None = None) -> bytes:
    """One chunk as a server-sent event."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    chunk = {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def completion(model: str, content: str) -> dict[str, Any]:
    """One whole answer."""
    return {
        "id": "chatcmpl-up",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
    }


def refuse(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> Response:
    """An error in OpenAI's shape."""
    return JSONResponse({"error": {"message": message, "type": code, "param": None, "code": code}}, status, headers)


async def models(_request: Request) -> Response:
    """The list of models."""
    listed = {"id": "tiny", "object": "model", "created": 1, "owned_by": "us"}
    return JSONResponse({"object": "list", "data": [listed]})


async def embeddings(request: Request) -> Response:
    """A fixed vector, and how many bytes were asked."""
    size = len(await request.body())
    vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
    usage = {"prompt_tokens": size, "total_tokens": size}
    return JSONResponse({"object": "list", "data": [vector], "model": "tiny", "usage": usage})


async def completions(request: Request) -> Response:
    """The words as a plain completion, whole or streamed."""
    body = orjson.loads(await request.body())
    head = {"id": "cmpl-up", "object": "text_completion", "created": 1, "model": body["model"]}
    end = {"index": 0, "logprobs": None, "finish_reason": "stop"}
    if not body.get("stream"):
        usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        return JSONResponse({**head, "choices": [{**end, "text": "".join(WORDS)}], "usage": usage})
    chunks = [{**head, "choices": [{**end, "text": word, "finish_reason": None}]} for word in WORDS]
    return events([*chunks, {**head, "choices": [{**end, "text": ""}]}], done=True)


async def responses(request: Request) -> Response:
    """The words by the responses API, whole or streamed."""
    body = orjson.loads(await request.body())
    whole = responded(body["model"], "completed")
    if not body.get("stream"):
        return JSONResponse(whole)
    where = {"item_id": "msg_up", "output_index": 0, "content_index": 0}
    deltas = [{"type": "response.output_text.delta", **where, "delta": word, "logprobs": []} for word in WORDS]
    started = {"type": "response.created", "response": responded(body["model"], "in_progress")}
    stages = [started, *deltas, {"type": "response.completed", "response": whole}]
    return events([{**stage, "sequence_number": number} for number, stage in enumerate(stages)], done=False)


def responded(model: str, status: str) -> dict[str, Any]:
    """A response object; its output is there once it is completed."""
    part = {"type": "output_text", "text": "".join(WORDS), "annotations": []}
    message = {"type": "message", "id": "msg_up", "status": "completed", "role": "assistant", "content": [part]}
    return {
        "id": "resp_up",
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": model,
        "output": [message] if status == "completed" else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def events(data: list[dict[str, Any]], *, done: bool) -> Response:
    """Server-sent events, named where they have a type."""
    lines = [b"event: %b\n" % one["type"].encode() if "type" in one else b"" for one in data]
    body = b"".join(line + b"data: " + orjson.dumps(one) + b"\n\n" for line, one in zip(lines, data, strict=True))
    return Response(body + b"data: [DONE]\n\n" * done, media_type="text/event-stream")


async def open_gate(_request: Request) -> Response:
    """Let the requests that wait now go on, of gated models and of the one that is held."""
    global gate
    gate.set()
    gate = asyncio.Event()
    return Response()


async def show_seen(_request: Request) -> Response:
    """What reached the server."""
    return JSONResponse({"requests": seen, **counts})


app = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/seen", show_seen),
        Route("/open", open_gate, methods=["POST"]),
    ]
)

if __name__ == "__main__":
    uvicorn.run(marked, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical", timeout_graceful_shutdown=1)
