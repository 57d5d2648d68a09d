"""A model server that answers at once, so that what is measured is what stands before it: an ASGI application.

``POST /v1/chat/completions`` gives one fixed completion; ``GET /seen`` says how many were asked for.
"""

from __future__ import annotations

import json

from benchmarks.lookup import answer
from gateway.responses import completion
from gateway.upstream import Receive, Scope, Send

BODY = completion(answer(0, bytes(16)), response_id=b"chatcmpl-upstream", model="shop-assistant")
_seen = 0


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request."""
    global _seen
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    body = BODY
    if scope["path"] == "/seen":
        body = json.dumps(_seen).encode()
    else:
        _seen += 1
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
