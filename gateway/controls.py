"""What a request says of the cache: ``Cache-Control`` and the namespace. In: its headers. Out: one small tuple.

Request directives as RFC 9111, 5.2.1 has them; those it does not name here (``max-stale``, ``no-transform`` ...) change
nothing. A directive that cannot be read asks for the most that it could mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

CACHE_CONTROL: Final = b"cache-control"
NAMESPACE: Final = b"x-prebake-namespace"
_OURS: Final = (CACHE_CONTROL, NAMESPACE)
# No age reaches it (RFC 9111, 1.2.2); longer numbers are not worth reading.
_AGES_DIGITS: Final = 10


class Controls(NamedTuple):
    """What one request asks for; ``max_age_s`` None: an answer of any age will do."""

    no_cache: bool = False  # not from the store
    no_store: bool = False  # leave no trace of it: neither in the request log nor anywhere else
    only_if_cached: bool = False  # from the store or not at all
    max_age_s: int | None = None
    namespace: str = ""  # as it came: the key decides whether it is one


NONE: Final = Controls()


def read_controls(headers: Iterable[tuple[bytes, bytes]]) -> Controls:
    """What the headers (names in small letters) ask for. Never raises; one look at each name where nothing is asked."""
    for name, _ in headers:
        if name in _OURS:
            return _read(headers)
    return NONE


def _read(headers: Iterable[tuple[bytes, bytes]]) -> Controls:
    asked: set[bytes] = set()
    ages: list[int] = []
    namespaces: list[bytes] = []
    for name, value in headers:
        if name == CACHE_CONTROL:
            for directive in value.lower().split(b","):
                key, _, argument = directive.partition(b"=")
                asked.add(key := key.strip())
                if key == b"max-age":
                    ages.append(_seconds(argument))
        elif name == NAMESPACE:
            namespaces.append(value)
    return Controls(
        no_cache=b"no-cache" in asked,
        no_store=b"no-store" in asked,
        only_if_cached=b"only-if-cached" in asked,
        max_age_s=min(ages, default=None),
        # Two namespaces are none: joined, they are no name that the key takes.
        namespace=b",".join(namespaces).decode("latin-1"),
    )


def _seconds(argument: bytes) -> int:
    """The number, which may stand in quotes (RFC 9111, 5.2); what is none is taken for 0 (4.2.1: stale)."""
    digits = argument.strip().strip(b'"')
    return int(digits[:_AGES_DIGITS]) if digits.isdigit() else 0
