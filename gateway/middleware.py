"""The store inside a Python application: ASGI middleware in front of an application that speaks OpenAI's protocol.

In: the application's requests. Out: hits from here, everything else from the application, with the headers, the request
log and the reloading of the gateway. It asks for no API keys: mount it behind what authenticates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack

from multidict import CIMultiDict
from starlette.types import ASGIApp

from gateway.app import open_log
from gateway.chat import CHAT_PATH, Chat
from gateway.identity import KEY
from gateway.metrics import Metrics
from gateway.reload import Serving
from gateway.upstream import TAIL_BYTES, Headers, Message, Passed, Receive, Scope, Send
from prebake.keys import Key
from prebake.loading import load
from prebake.settings import Settings
from storage.objects import open_objects
from storage.snapshot import cache_folder


class Prebake:
    """``app.add_middleware(Prebake)``: answers what was baked, leaves the rest to the application."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings | None = None,
        *,
        path: str = CHAT_PATH,
        tenant: Callable[[Scope], str | None] | None = None,
    ) -> None:
        """``settings`` as of the nearest ``prebake.toml`` where not given; ``path`` is that of chat completions.

        ``tenant`` tells the tenant from the request's scope, as the application's authentication left it there; without
        it the header ``gateway.tenant_header`` counts. Raises SettingsError for wrong settings.
        """
        settings = settings or load()
        metrics, objects = Metrics(), open_objects(settings.store)
        folder = cache_folder(settings.gateway.cache_dir, objects.uri)
        self._app, self._path, self._tenant = app, path, tenant
        self._serving = Serving(objects, cache_dir=folder, reload_s=settings.gateway.reload_s, metrics=metrics)
        self._log = open_log(settings, objects, metrics) if settings.gateway.log else None
        self._chat = Chat(settings, self._serving, _Inner(app), self._log, None, metrics)
        self._parts = AsyncExitStack()
        self._running = False
        self._starting = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or pass it on; with the lifespan's end, stop."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, self._stopping(send))
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        if not self._running:
            await self._start()
        if self._tenant is not None:
            scope[KEY] = Key.model_construct(name="application", sha256="", tenant=self._tenant(scope) or "")
        return await self._chat(scope, receive, send)

    async def _start(self) -> None:
        """With the first request: not every server runs an application's lifespan."""
        async with self._starting:
            if not self._running:
                self._parts.push_async_callback(self._serving.stop)
                await self._serving.start()
                if self._log is not None:
                    self._parts.callback(self._log.close)
                    self._log.start()
                self._running = True

    def _stopping(self, send: Send) -> Send:
        async def stop_at_the_end(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                await self._parts.aclose()
            await send(message)

        return stop_at_the_end


class _Inner:
    """The application, as the place where a request goes that is not answered here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def headers_on(self, headers: Iterable[tuple[bytes, bytes]]) -> CIMultiDict[str]:
        return CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)

    async def forward(
        self, scope: Scope, receive: Receive, send: Send, *, body: bytes = b"", more: bool = False, marks: Headers
    ) -> Passed:
        passed = Passed()
        read = [{"type": "http.request", "body": body, "more_body": more}]

        async def receive_again() -> Message:
            return read.pop() if read else await receive()

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                passed.status = message["status"]
                message = {**message, "headers": [*marks, *message.get("headers", ())]}
            elif message["type"] == "http.response.body":
                passed.take(message.get("body", b""), TAIL_BYTES)
                passed.complete = not message.get("more_body", False)
            await send(message)

        await self._app(scope, receive_again, send_marked)
        return passed
