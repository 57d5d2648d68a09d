"""Metadata services of three clouds in one small HTTP server, as far as preemption notices go."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Metadata:
    """What the service says, and what it was asked."""

    items: dict[str, str] = field(default_factory=dict)
    """By path; what is not here is 404."""
    tokens: set[str] = field(default_factory=set)
    tokens_given: int = 0
    failures: int = 0
    """How many of the next answers are 503."""
    silent: bool = False
    """Requests for a token are not answered, as where the answer has too many hops to go."""
    asked: list[str] = field(default_factory=list)
    told: dict[str, float] = field(default_factory=dict)
    """By path: when it was first answered, by the monotonic clock."""
    port: int = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serve_metadata() -> Iterator[Metadata]:
    """The service on a free port of this machine."""
    state = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if state.silent:
                state.asked.append(self.path)
                self.close_connection = True
                return None
            ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if self.path != "/latest/api/token" or not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
                return self._answer(400)
            state.tokens_given += 1
            state.tokens.add(f"token-{state.tokens_given}")
            return self._answer(200, f"token-{state.tokens_given}")

        def do_GET(self) -> None:
            state.asked.append(self.path)
            if state.failures:
                state.failures -= 1
                return self._answer(503)
            if not self._allowed():
                return self._answer(401 if self.path.startswith("/latest") else 403)
            item = state.items.get(self.path)
            if item is not None:
                state.told.setdefault(self.path, time.monotonic())
            return self._answer(404) if item is None else self._answer(200, item)

        def _allowed(self) -> bool:
            if self.path.startswith("/latest"):
                return self.headers.get("X-aws-ec2-metadata-token") in state.tokens
            if self.path.startswith("/computeMetadata"):
                return self.headers.get("Metadata-Flavor") == "Google"
            return self.headers.get("Metadata") == "true"

        def _answer(self, status: int, text: str = "") -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(ConnectionError):  # whoever asked may be dead by now
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


EC2 = "/latest/meta-data/"
GCP = "/computeMetadata/v1/instance/preempted"
AZURE = "/metadata/scheduledevents?api-version=2020-07-01"
AZURE_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"


def azure_events(*kinds: str, of: str = "bake_1", not_before: str = "Mon, 05 Jan 2026 03:00:30 GMT") -> str:
    """Azure's answer with events of those kinds, which concern the machine of that name."""
    events = [
        {
            "EventId": kind,
            "EventType": kind,
            "ResourceType": "VirtualMachine",
            "Resources": [of],
            "EventStatus": "Scheduled",
            "NotBefore": not_before,
        }
        for kind in kinds
    ]
    return json.dumps({"DocumentIncarnation": 1, "Events": events})
