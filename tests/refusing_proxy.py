"""An HTTP proxy in front of one server that refuses every tenth call with 503, as an overloaded object store does."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import urlsplit


@dataclass
class Refusing:
    """Its address, and how many calls it refused."""

    url: str = ""
    refused: int = 0


@contextmanager
def serve_refusing(target: str, *, every: int = 10) -> Iterator[Refusing]:
    """The proxy on a free port, for as long as the block lasts."""
    state, numbers = Refusing(), count(1)
    upstream = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self._body()
            if next(numbers) % every == 0:
                state.refused += 1
                return self._answer(503, {}, b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>")
            connection = http.client.HTTPConnection(upstream, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            data = response.read()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP}
            if self.command == "HEAD":
                headers["Content-Length"] = response.getheader("Content-Length", "0")
            self._answer(response.status, headers, data)
            return connection.close()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

        def _body(self) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                del self.headers["Expect"]
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


_HOP = ("connection", "transfer-encoding", "content-length", "date", "server")
