"""One ready answer, as each server of the benchmark ``servers`` is told to give it. In: a request. Out: always a hit.

It runs in the servers' own environment, so it needs nothing but them: no prebake, Starlette only where it is asked for.
"""

from __future__ import annotations

import os
from typing import Any

BODY = os.environ["READY_BODY"].encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY)), (b"x-prebake", b"hit")]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """Plain ASGI."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


async def rsgi(_scope: Any, protocol: Any) -> None:
    """granian's own interface."""
    await protocol()
    protocol.response_bytes(200, [(name.decode(), value.decode()) for name, value in HEADERS], BODY)


def starlette() -> Any:
    """Starlette, with one route."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def answer(request: Request) -> Response:
        await request.body()
        return Response(BODY, media_type="application/json", headers={"x-prebake": "hit"})

    return Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
