"""Heads of requests that came before. A client sends the same head again and again, byte for byte, while only the body
changes: what the parser made of those bytes once, it would make of them again.

In: pieces as they arrive. Out: the headers, and where the body begins, of a piece that is one whole request.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gateway.upstream import Headers

_END: Final = b"\r\n\r\n"
# At most some 15 MB; where each head is another, as with a trace's number in it, remembering is no use.
_MOST: Final = 1000


class Head(NamedTuple):
    """What the parser made of a head."""

    headers: Headers
    body_start: int
    whole: int  # bytes of head and body


class Heads:
    """The heads that one process remembers."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, piece: bytes) -> Head | None:
        """The head of the piece, if it is known and the piece is one request from its beginning to its end."""
        head = self._known.get(piece[: piece.find(_END) + len(_END)])
        return head if head is not None and head.whole == len(piece) else None

    def remember(self, piece: bytes, headers: Headers, body: bytes) -> None:
        """Keep what the parser made of the piece, if that was one request whose length its head announces."""
        start = piece.find(_END) + len(_END)
        announced = [value for name, value in headers if name in (b"content-length", b"transfer-encoding")]
        if start + len(body) != len(piece) or announced != [b"%d" % len(body)]:
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[piece[:start]] = Head(headers, start, len(piece))
