"""What is traced: a request, its lookup and its way to the upstream as OpenTelemetry spans, sent by OTLP over HTTP.

In: the gateway's parts. Out: the same parts with spans around them, which hold no texts, and ``traceparent`` (W3C Trace
Context) on every request that goes upstream. Imported only where traces are wanted: see ``tracing``.
"""

from __future__ import annotations

import os
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from starlette.types import ASGIApp

from gateway.chat import Chat, Outcome
from gateway.upstream import PREFIX, Message, Passed, Receive, Scope, Send, Upstream

SERVICE = "prebake-gateway"
PROPAGATED = frozenset({b"traceparent", b"tracestate", b"baggage"})


class Tracing:
    """The provider that batches spans and sends them from a thread of its own. One for each process."""

    def __init__(self) -> None:
        named = os.environ.get("OTEL_SERVICE_NAME") or SERVICE
        self._provider = TracerProvider(resource=Resource.create({"service.name": named}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer: Tracer = self._provider.get_tracer(SERVICE)

    def chat(self, *args: Any) -> Chat:
        """The hot route, traced."""
        chat = TracedChat(*args)
        chat.tracer = self.tracer
        return chat

    def upstream(self, *args: Any) -> Upstream:
        """The way to the model, traced."""
        upstream = TracedUpstream(*args)
        upstream.tracer = self.tracer
        return upstream

    def app(self, app: ASGIApp) -> ASGIApp:
        """The whole application, traced."""
        return TracedApp(app, self.tracer)

    def close(self) -> None:
        """Send what is left, within the exporter's own time limit."""
        self._provider.shutdown()


class TracedApp:
    """A span for each request under the API, child of the one that the client's headers name."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not scope["path"].startswith(f"{PREFIX}/"):
            return await self._app(scope, receive, send)
        parent = extract({n.decode(): v.decode("latin-1") for n, v in scope["headers"] if n in PROPAGATED})
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        with self._tracer.start_as_current_span(scope["method"], parent, SpanKind.SERVER, attributes) as span:
            await self._app(scope, receive, _noting(send, span))


class TracedChat(Chat):
    """The hot route with a span around the lookup."""

    tracer: Tracer

    def _look_up(self, *args: Any, **options: Any) -> Outcome:
        with self.tracer.start_as_current_span("lookup") as span:
            outcome = super()._look_up(*args, **options)
            span.set_attributes({"prebake.cache": outcome.cache, "prebake.route": outcome.route})
            if outcome.reason:
                span.set_attribute("prebake.reason", str(outcome.reason))
            if outcome.answer is not None:
                span.set_attribute("prebake.run_id", outcome.answer.run_id)
            return outcome


class TracedUpstream(Upstream):
    """The way to the model with a span around it, whose children the upstream's own spans become."""

    tracer: Tracer

    async def forward(self, scope: Scope, receive: Receive, send: Send, **options: Any) -> Passed:
        """Send the request on; see Upstream.forward."""
        with self.tracer.start_as_current_span("upstream", kind=SpanKind.CLIENT) as span:
            context: dict[str, str] = {}
            inject(context)
            headers = [header for header in scope["headers"] if header[0] not in PROPAGATED]
            headers += [(name.encode(), value.encode()) for name, value in context.items()]
            passed = await super().forward({**scope, "headers": headers}, receive, _noting(send, span), **options)
            if not passed.complete:
                span.set_status(Status(StatusCode.ERROR, "the answer was not passed on to its end"))
            return passed


def _noting(send: Send, span: Span) -> Send:
    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            span.set_attribute("http.response.status_code", message["status"])
            if message["status"] >= 500:
                span.set_status(Status(StatusCode.ERROR))
        await send(message)

    return noting
