"""Who may come in: the key that a request presents, and how many requests it may make in a minute.

In: the headers of a request under /v1. Out: whose key it is, or the refusal to send instead of an answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from gateway.metrics import Metrics
from gateway.responses import error
from prebake.keys import Key, Keyring
from prebake.settings import Settings

WINDOW_S = 60
# What else clients send keys by; none of them goes on where the gateway has keys or a key of its own for the upstream.
CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key"})


class Refused(StrEnum):
    """Why a request was refused at the door, by us and not by the upstream."""

    NO_KEY = "no_key"
    WRONG_KEY = "wrong_key"
    RATE_LIMITED = "rate_limited"


class Refusal(NamedTuple):
    """An answer that says no: status, body in OpenAI's shape, headers beside the usual ones."""

    reason: Refused
    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]]


class Doors:
    """Knows the keys in force and counts their requests. One event loop uses it."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._refused = metrics.refused
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Go by other settings from now on; what was counted in this minute stays counted."""
        self._keyring = Keyring(settings.keys)
        self._rates = {
            key.name: RateLimitItemPerMinute(key.requests_per_minute)
            for key in settings.keys
            if key.requests_per_minute
        }

    def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> Key | Refusal | None:
        """The key of the request, None where none is asked for, or the refusal."""
        if not self._keyring:
            return None
        presented = [value for name, value in headers if name == b"authorization"]
        if not presented:
            return self._no_entry(Refused.NO_KEY)
        key = self._keyring.find(_token(presented[0])) if len(presented) == 1 else None
        if key is None:
            return self._no_entry(Refused.WRONG_KEY)
        wait_s = self._wait_s(key)
        return key if wait_s == 0 else self._too_many(key, wait_s)

    def count(self, reason: Refused) -> None:
        """Count a refusal."""
        self._refused.labels(reason.value).inc()

    def _wait_s(self, key: Key) -> int:
        """Count the request; how long to wait where it is one too many, in seconds."""
        rate = self._rates.get(key.name)
        if rate is None or self._limiter.hit(rate, key.name):
            return 0
        left_s = self._limiter.get_window_stats(rate, key.name).reset_time - time.time()
        if left_s <= WINDOW_S:
            return max(1, math.ceil(left_s))
        # The clock was set back: by the library's wall clock the window would last for hours.
        self._limiter.clear(rate, key.name)
        self._limiter.hit(rate, key.name)
        return 0

    def _no_entry(self, reason: Refused) -> Refusal:
        self.count(reason)
        message = (
            "The API key is not known here." if reason is Refused.WRONG_KEY else "Send an API key as Bearer token."
        )
        body = error(message, kind="invalid_request_error", code="invalid_api_key")
        return Refusal(reason, 401, body, [(b"www-authenticate", b"Bearer")])

    def _too_many(self, key: Key, wait_s: int) -> Refusal:
        self.count(Refused.RATE_LIMITED)
        message = f"The key {key.name} may make {key.requests_per_minute} requests per minute; wait {wait_s} s."
        body = error(message, kind="rate_limit_error", code="rate_limit_exceeded")
        return Refusal(Refused.RATE_LIMITED, 429, body, [(b"retry-after", b"%d" % wait_s)])


def _token(authorization: bytes) -> bytes:
    """The token behind the scheme Bearer in any case (RFC 6750, 2.1; RFC 9110, 11.1); empty for other schemes."""
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""
