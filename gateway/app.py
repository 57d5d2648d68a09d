"""The gateway put together: an ASGI application. In: settings. Out: hits, and everything under /v1 from the upstream.

The hot route is plain ASGI, because the framework would cost as much as the lookup; the rest is Starlette.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.access_log import AccessLog
from gateway.chat import CHAT_PATH, NOT_CACHED, Chat, Hit, Reason, marks
from gateway.controls import read_controls
from gateway.doors import DOORS, Doors, Refusal
from gateway.heads import Heads
from gateway.identity import KEY
from gateway.metrics import Metrics
from gateway.near import NearMisses
from gateway.protocol import HEADS, HITS
from gateway.reload import Serving
from gateway.request_log import RequestLog
from gateway.reread import read_again
from gateway.responses import error
from gateway.tracing import open_tracing
from gateway.upstream import PREFIX, Receive, Scope, Send, Upstream, has_body, is_inside, send_json
from prebake.errors import StorageError
from prebake.settings import Settings
from storage.objects import Objects, open_objects
from storage.snapshot import cache_folder
from storage.store import user_salt

if TYPE_CHECKING:
    from gateway.admin.pages import Admin
    from gateway.spans import Tracing

API = f"{PREFIX}/"
ADMIN_PATH = "/admin"
HAND_OVER_S = 0.25

logger = logging.getLogger(__name__)


def application(settings: Settings, file: Path | None = None) -> ASGIApp:
    """The gateway of one process, with what the settings and the environment put around it.

    ``file`` is where the settings are from: it is read again on SIGHUP.
    """
    tracing = open_tracing()
    gateway = Gateway(settings, tracing, file)
    app: ASGIApp = tracing.app(gateway) if tracing else gateway
    return AccessLog(app, gateway.metrics) if settings.gateway.access_log else app


class Gateway:
    """One process of the gateway. Its parts are started and stopped by the server, through ASGI's lifespan."""

    def __init__(self, settings: Settings, tracing: Tracing | None = None, file: Path | None = None) -> None:
        options = settings.gateway
        self._settings = settings
        self._file = file
        self._metrics = Metrics()
        self._doors = Doors(settings, self._metrics)
        self._tracing = tracing
        objects = open_objects(settings.store)
        self._serving = Serving(
            objects,
            cache_dir=cache_folder(options.cache_dir, objects.uri),
            reload_s=options.reload_s,
            metrics=self._metrics,
        )
        self._upstream = (tracing.upstream if tracing else Upstream)(settings, self._metrics)
        self._log = open_log(settings, objects, self._metrics) if options.log else None
        self._near = self._open_near(settings, objects)
        self._chat = (tracing.chat if tracing else Chat)(
            settings, self._serving, self._upstream, self._log, self._near, self._metrics
        )
        self._passed_through = self._metrics.requests.labels("", "bypass", Reason.NOT_CHAT)
        self._objects = objects
        self._admin: Admin | None = None
        self._use_admin(settings)
        self._pass_unknown = options.pass_unknown
        self._others = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._show_metrics),
            ],
            lifespan=self._lifespan,
            exception_handlers={404: _not_found},
        )
        self._others.router.default = self._unknown

    @property
    def metrics(self) -> Metrics:
        """What this process counts."""
        return self._metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] == "http":
            path: str = scope["path"]
            if path.startswith(API):
                return await self._api(scope, receive, send)
            if self._admin is not None and (path == ADMIN_PATH or path.startswith(f"{ADMIN_PATH}/")):
                return await self._admin(scope, receive, send)
        return await self._others(scope, receive, send)

    async def _api(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = scope[KEY] if KEY in scope else self._doors.admit(scope)
        if isinstance(key, Refusal):
            return await send_json(send, key.status, key.body, key.headers)
        scope[KEY] = key
        if scope["path"] == CHAT_PATH and scope["method"] == "POST":
            return await self._chat(scope, receive, send)
        return await self._pass_through(scope, receive, send)

    def _hit(self, scope: Scope, raw: bytes) -> Hit | None:
        """What answers a whole chat request at once; None: it goes the ordinary way, past the door if it was here."""
        scope[KEY] = key = self._doors.admit(scope)
        return None if isinstance(key, Refusal) else self._chat.hit(scope["headers"], key, raw)

    async def _unknown(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A path that is neither the API's nor ours: the upstream's where the settings say so."""
        if self._pass_unknown and scope["type"] == "http" and scope["path"].startswith("/"):
            return await self._api(scope, receive, send)
        return await self._others.router.not_found(scope, receive, send)

    async def _pass_through(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._passed_through.inc()
        headers = marks("bypass", Reason.NOT_CHAT)
        if not is_inside(scope["path"]):
            body = error("The path leads out of the API.", kind="invalid_request_error", code="not_found")
            return await send_json(send, 404, body, headers)
        if read_controls(scope["headers"]).only_if_cached:
            return await send_json(send, 504, NOT_CACHED, headers)
        await self._upstream.forward(scope, receive, send, more=has_body(scope["headers"]), marks=headers)

    def _use_admin(self, settings: Settings) -> None:
        """The page is there while an admin key is in force; what it is made of is loaded then, and not before."""
        if not any(key.admin for key in settings.keys):
            self._admin = None
        elif self._admin is not None:
            self._admin.use(settings)
        else:
            from gateway.admin.pages import Admin

            self._admin = Admin(settings, self._objects, self._serving)

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            if self._tracing is not None:
                stack.push_async_callback(asyncio.to_thread, self._tracing.close)
            stack.push_async_callback(self._upstream.stop)
            await self._upstream.start()
            stack.push_async_callback(self._serving.stop)
            await self._serving.start()
            if self._log is not None:
                stack.callback(self._log.close)
                self._log.start()
            stack.enter_context(_on_hangup(self._reread))
            if self._near is not None:
                stack.callback(self._near.close)
                self._near.start()
            gc.collect()
            gc.freeze()  # what lives as long as the process need not be looked at again
            stack.callback(self._metrics.hits.hand_over)
            stack.enter_context(_every(HAND_OVER_S, self._metrics.hits.hand_over))
            # Traces and the access log see what goes through the application.
            at_once = self._tracing is None and not self._settings.gateway.access_log
            yield {DOORS: self._doors, HITS: self._hit if at_once else None, HEADS: Heads()}

    def _reread(self) -> None:
        """Go by the settings as the file has them now: requests in flight keep what they began with."""
        settings = read_again(self._file, self._settings)
        if settings is not None:
            self._settings = settings
            self._doors.use(settings)
            self._upstream.use(settings)
            self._chat.use(settings)
            self._use_admin(settings)

    def _open_near(self, settings: Settings, objects: Objects) -> NearMisses | None:
        if all(route.near == "off" for route in settings.routes):
            return None
        return NearMisses(
            objects, self._serving, settings.near, flush_s=settings.gateway.log_flush_s, metrics=self._metrics
        )

    async def _healthz(self, _request: Request) -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    async def _readyz(self, _request: Request) -> Response:
        """Ready as soon as it listens: without a store everything is a miss, which is still service."""
        store = self._serving.store
        return JSONResponse(
            {
                "status": "ready",
                "store": "served" if store is not None else str(self._serving.reason),
                "snapshot": store.version if store is not None else None,
                "snapshot_age_s": int(time.time() - store.manifest.created_at.timestamp())
                if store is not None
                else None,
                "answers": len(store) if store is not None else 0,
                "problem": self._serving.problem or None,
            }
        )

    async def _show_metrics(self, _request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _not_found(_request: Request, _error: Exception) -> Response:
    body = error(f"No such path here: the API is under {PREFIX}/.", kind="invalid_request_error", code="not_found")
    return Response(body, 404, media_type="application/json")


@contextmanager
def _every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Act again and again on the event loop."""

    async def again() -> None:
        while True:
            await asyncio.sleep(seconds)
            act()

    task = asyncio.create_task(again())
    try:
        yield
    finally:
        task.cancel()


@contextmanager
def _on_hangup(act: Callable[[], None]) -> Iterator[None]:
    """Act on SIGHUP; where signals are another's business, as in a thread of a test, there are none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, act)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def open_log(settings: Settings, objects: Objects, metrics: Metrics) -> RequestLog | None:
    """The request log, not started; None, and an error logged, where there is no salt to hash users with."""
    try:
        salt = user_salt(settings, objects)
    except StorageError as error:
        logger.error("%s; requests are served, but not logged", error)
        return None
    return RequestLog(objects, salt, settings.gateway, metrics)
