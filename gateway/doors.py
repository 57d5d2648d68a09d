"""Who may come in: the key that a request presents, how many requests it may make in a minute, what else is refused.

In: a request under /v1. Out: whose key it is, or the refusal to send instead of an answer.
"""

from __future__ import annotations

import math
import time
from enum import StrEnum
from typing import NamedTuple

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from gateway.chat import marks
from gateway.metrics import Metrics
from gateway.responses import error
from gateway.upstream import Headers, Scope
from prebake.keys import Key, Keyring
from prebake.settings import Settings

DOORS = "doors"  # where connections find the doors in the state of the lifespan
REFUSAL = "prebake.refusal"  # where the connection leaves in a request's scope that it is too long
WINDOW_S = 60
_MOST_REMEMBERED = 10_000
_BEARER = ("invalid_request_error", (b"www-authenticate", b"Bearer"))


class Refused(StrEnum):
    """Why a request was refused at the door, by us and not by the upstream."""

    NO_KEY = "no_key"
    WRONG_KEY = "wrong_key"
    RATE_LIMITED = "rate_limited"
    TOO_LARGE = "too_large"  # the whole request
    HEADERS = "headers"  # too many, or too long
    SLOW = "slow"


class Refusal(NamedTuple):
    """An answer that says no: status, body in OpenAI's shape, headers beside type and length."""

    reason: Refused
    status: int
    body: bytes
    headers: Headers


class Doors:
    """Knows the keys in force and counts their requests. One event loop uses it."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._refused = metrics.refused
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Go by other settings from now on; what was counted in this minute stays counted."""
        self.limits = settings.gateway.limits
        self._keyring = Keyring(settings.keys)
        self._admitted: dict[bytes, Key] = {}
        self._rates = {
            key.name: RateLimitItemPerMinute(key.requests_per_minute)
            for key in settings.keys
            if key.requests_per_minute
        }

    def admit(self, scope: Scope) -> Key | Refusal | None:
        """The key of the request, None where none is asked for, or the refusal."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if len(headers) > self.limits.headers:
            return self.refuse(Refused.HEADERS)
        refusal: Refusal | None = scope.get(REFUSAL)
        if refusal is not None:
            return refusal
        if not self._keyring:
            return None
        presented = [value for name, value in headers if name == b"authorization"]
        if not presented:
            return self.refuse(Refused.NO_KEY)
        key = (self._admitted.get(presented[0]) or self._find(presented[0])) if len(presented) == 1 else None
        if key is None:
            return self.refuse(Refused.WRONG_KEY)
        wait_s = self._wait_s(key)
        return key if wait_s == 0 else self._too_many(key, wait_s)

    def refuse(self, reason: Refused) -> Refusal:
        """Count a refusal, and what to answer; of every reason but the rate, which depends on the key."""
        self._refused.labels(reason.value).inc()
        return _REFUSALS[reason]

    def _find(self, authorization: bytes) -> Key | None:
        """The key in a header; one that is good is remembered as it came until the settings change.

        That tells a guesser nothing: only good headers are remembered, and the dictionary looks for them by Python's
        hash with a random secret, so that a guess which begins like a key takes no longer than any other.
        """
        key = self._keyring.find(_token(authorization))
        if key is not None:
            if len(self._admitted) >= _MOST_REMEMBERED:  # a key can be written in many ways
                self._admitted.clear()
            self._admitted[authorization] = key
        return key

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

    def _too_many(self, key: Key, wait_s: int) -> Refusal:
        self._refused.labels(Refused.RATE_LIMITED.value).inc()
        message = f"The key {key.name} may make {key.requests_per_minute} requests per minute; wait {wait_s} s."
        return _refusal(
            Refused.RATE_LIMITED,
            429,
            message,
            "rate_limit_exceeded",
            "rate_limit_error",
            (b"retry-after", b"%d" % wait_s),
        )


def _token(authorization: bytes) -> bytes:
    """The token behind the scheme Bearer in any case (RFC 6750, 2.1; RFC 9110, 11.1); empty for other schemes."""
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _refusal(
    reason: Refused,
    status: int,
    message: str,
    code: str,
    kind: str = "invalid_request_error",
    *headers: tuple[bytes, bytes],
) -> Refusal:
    return Refusal(reason, status, error(message, kind=kind, code=code), [*marks("refused", reason), *headers])


_REFUSALS = {
    refusal.reason: refusal
    for refusal in (
        _refusal(Refused.NO_KEY, 401, "Send an API key as Bearer token.", "invalid_api_key", *_BEARER),
        _refusal(Refused.WRONG_KEY, 401, "The API key is not known here.", "invalid_api_key", *_BEARER),
        _refusal(Refused.TOO_LARGE, 413, "The request is too long for this gateway.", "request_too_large"),
        _refusal(Refused.HEADERS, 431, "The request has too many or too long headers.", "headers_too_large"),
        _refusal(Refused.SLOW, 408, "The request did not come in time.", "request_timeout"),
    )
}
