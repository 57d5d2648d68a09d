"""The hot route, POST /v1/chat/completions: a hit is answered here, everything else by the upstream.

In: one request. Out: the stored answer as OpenAI would have sent it, or the upstream's own answer; in both cases with
headers that say what happened and why. A lookup is one uninterrupted step of the event loop (see ``reload``).
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from email.utils import formatdate
from enum import StrEnum
from functools import lru_cache
from time import perf_counter
from typing import Any, Final, NamedTuple

import orjson

from gateway.coalesce import Coalescing
from gateway.controls import Controls, read_controls
from gateway.identity import KEY, Identity
from gateway.metrics import Metrics
from gateway.near import Miss, NearMisses
from gateway.reload import NoStore, Serving
from gateway.request_log import PEOPLE_FIELDS, LogRow, RequestLog
from gateway.responses import completion, error, stream
from gateway.upstream import PREFIX, Headers, Onward, Passed, Receive, Scope, Send, send_json
from prebake.answer import Answer
from prebake.errors import PrebakeError
from prebake.keys import Key
from prebake.near import Near, group_of, question_of
from prebake.request import Bypass, Keyed, key_request
from prebake.settings import Settings

logger = logging.getLogger(__name__)
_new: Final = tuple.__new__  # named tuples the short way: a hit makes four


CHAT_PATH = f"{PREFIX}/chat/completions"
# Obfuscation pads chunks against eavesdroppers who measure them; a hit is one burst, which has nothing to measure.
STREAM_OPTIONS = frozenset({"include_usage", "include_obfuscation"})
NOT_CACHED = error(
    "There is no stored answer to this request, and Cache-Control: only-if-cached forbids to ask the model.",
    kind="cache_error",
    code="not_cached",
)


class Reason(StrEnum):
    """Why a request went to the upstream, beside Bypass, Withheld (prebake) and NoStore (gateway.reload)."""

    NOT_BAKED = "not_baked"  # no answer with this key, or it has expired
    TOO_OLD = "too_old"  # the answer is older than the request's max-age
    NO_CACHE = "no_cache"  # the request wants a new answer
    COALESCED = "coalesced"  # not baked, and an identical request was on its way already: both get its answer
    TOO_LARGE = "too_large"  # longer than the settings look at
    DELIVERY = "delivery"  # wants the answer in a way that only the upstream can do, or refuse
    QUERY = "query"  # a query string, which the key knows nothing of
    NOT_CHAT = "not_chat"  # another path of the API


# Requests that were hits are remembered with what they ask; at most some 15 MB, as they came in one short piece.
_MOST_KNOWN: Final = 1000

# What the night could not read, or would count as asked in another partition than it was.
UNLOGGED = frozenset({Bypass.MALFORMED, Bypass.NAMESPACE})


class Outcome(NamedTuple):
    """What became of a request: hit or near (then there is an answer), miss or bypass."""

    cache: str
    reason: str | None
    route: str
    answer: Answer | None = None
    key: Keyed | None = None  # of a miss that could have been a hit
    near: Near | None = None  # whose answer it is, if not the request's own


class Asked(NamedTuple):
    """A request as it is logged: when it came, who asks, what it says of the cache, its bytes and what they say."""

    at: float
    tenant: str | None
    controls: Controls
    raw: bytes
    body: Any


class Hit(NamedTuple):
    """What answers a hit, with status 200: its headers, a line for each, and its body."""

    lines: bytes
    body: bytes

    @property
    def headers(self) -> Headers:
        """The headers one by one."""
        return [_pair(line) for line in self.lines.splitlines()]


class Chat:
    """Answers chat requests, from the store where it may."""

    def __init__(
        self,
        settings: Settings,
        serving: Serving,
        upstream: Onward,
        log: RequestLog | None,
        near: NearMisses | None,
        metrics: Metrics,
    ) -> None:
        self._upstream = upstream
        self.use(settings)
        self._serving = serving
        self._log = log
        self._near = near
        process = os.urandom(8).hex().encode()
        self._ids = (b"chatcmpl-%b%08x" % (process, number) for number in itertools.count())
        self._requests = lru_cache(1024)(metrics.requests.labels)
        self._hits = metrics.hits
        self._broken_version: bytes | None = None

    def use(self, settings: Settings) -> None:
        """Go by other settings from the next request on."""
        self._routes = settings.route_table
        self._identity = Identity(settings.gateway)
        self._log_answers = settings.gateway.log_answers
        self._max_body_bytes = int(settings.gateway.max_body_mb * 1e6)
        self._coalescing = Coalescing(self._upstream, settings.gateway.user_header)
        self._known: dict[tuple[bytes, str | None, Controls], tuple[Any, Keyed]] = {}
        self._coalesced = frozenset(route.name for route in settings.routes if route.coalesce)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrived = time.time()
        read = await _read(receive, self._max_body_bytes)
        if read is None:
            return
        started = perf_counter()
        raw, more = read
        body = None if more else _parse(raw)
        tenant = self._identity.tenant(scope["headers"], scope.get(KEY))
        controls = read_controls(scope["headers"])
        asked = Asked(arrived, tenant, controls, raw, body)
        outcome = self._look_up(scope["query_string"], body, tenant, more, controls)
        if self._near is not None and outcome.key is not None and not controls.no_store:
            outcome = await self._look_near(self._near, outcome, outcome.key, body, tenant, controls, arrived)
        ride = None
        if outcome.answer is None and outcome.route in self._coalesced and _may_share(body, controls):
            ride = self._coalescing.board(scope, raw, body, tenant)
            outcome = outcome._replace(reason=Reason.COALESCED) if ride.joined else outcome
        if outcome.answer is not None:
            hit = self._render(outcome, outcome.answer, body, arrived)
            await send({"type": "http.response.start", "status": 200, "headers": hit.headers})
            await send({"type": "http.response.body", "body": hit.body})
            self._note_hit(outcome, outcome.answer, scope["headers"], asked, len(hit.body), started)
            return
        self._requests(outcome.route, outcome.cache, outcome.reason or "").inc()
        if controls.only_if_cached:  # RFC 9111, 5.2.1.7
            await send_json(send, 504, NOT_CACHED, marks(outcome.cache, outcome.reason))
            passed = Passed(504)
        else:
            said = marks(outcome.cache, outcome.reason)
            if ride is not None:
                passed = await ride.take(receive, send, said)
            else:
                passed = await self._upstream.forward(scope, receive, send, body=raw, more=more, marks=said)
        if passed.status and isinstance(body, dict) and outcome.reason not in UNLOGGED:
            self._note(outcome, scope["headers"], asked, passed.status, bytes(passed.tail), passed.whole)

    def hit(self, headers: Headers, key: Key | None, raw: bytes) -> Hit | None:
        """The same for a whole request without a query, at once; None, and nothing counted, if it is no hit."""
        arrived, started = time.time(), perf_counter()
        tenant = self._identity.tenant(headers, key)
        controls = read_controls(headers)
        asked = (raw, tenant, controls)
        known = self._known.get(asked)
        if known is None:
            body = _parse(raw)
            keyed = self._key(b"", body, tenant, False, controls)
            if isinstance(keyed, Outcome):
                return None
        else:
            body, keyed = known
        outcome = self._find(keyed, controls)
        if outcome.answer is None:
            return None
        if known is None:
            self._remember(asked, (body, keyed))
        hit = self._render(outcome, outcome.answer, body, arrived)
        row = _new(Asked, (arrived, tenant, controls, raw, body))
        self._note_hit(outcome, outcome.answer, headers, row, len(hit.body), started)
        return hit

    def _remember(self, asked: tuple[bytes, str | None, Controls], known: tuple[Any, Keyed]) -> None:
        """Hits come again byte for byte: the few questions that many ask, and what people choose from a list."""
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[asked] = known

    def _look_up(self, query: bytes, body: Any, tenant: str | None, more: bool, controls: Controls) -> Outcome:
        keyed = self._key(query, body, tenant, more, controls)
        return keyed if isinstance(keyed, Outcome) else self._find(keyed, controls)

    def _key(self, query: bytes, body: Any, tenant: str | None, more: bool, controls: Controls) -> Keyed | Outcome:
        """The key to look for, or why there is none."""
        if more:
            return Outcome("bypass", Reason.TOO_LARGE, "")
        if controls.no_cache:
            return Outcome("bypass", Reason.NO_CACHE, "")
        if query:
            return Outcome("bypass", Reason.QUERY, "")
        if isinstance(body, dict) and not delivery_is_ours(body):
            return Outcome("bypass", Reason.DELIVERY, "")
        try:
            key = key_request(body, self._routes, tenant, controls.namespace)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with us, the upstream can answer
            self._say_broken(error)
            return Outcome("miss", NoStore.BROKEN, "")
        return key if isinstance(key, Keyed) else Outcome("bypass", key, "")

    def _find(self, key: Keyed, controls: Controls) -> Outcome:
        """The answer with that key, or why it is not given."""
        route, _, fingerprint = key
        store = self._serving.store
        if store is None:
            return Outcome("miss", self._serving.reason, route.name)
        try:
            answer = store.get(fingerprint)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with us, the upstream can answer
            self._say_broken(error)
            return Outcome("miss", NoStore.BROKEN, "")
        if (withheld := self._serving.verdicts.withhold(route, fingerprint, answer)) is not None:
            return Outcome("miss", withheld, route.name)
        if answer is None:
            return Outcome("miss", Reason.NOT_BAKED, route.name, key=key)
        if controls.max_age_s is not None and _age_s(answer, time.time()) > controls.max_age_s:
            return Outcome("miss", Reason.TOO_OLD, route.name)
        return _new(Outcome, ("hit", None, route.name, answer, None, None))

    async def _look_near(
        self,
        near_misses: NearMisses,
        miss: Outcome,
        key: Keyed,
        body: Any,
        tenant: str | None,
        controls: Controls,
        arrived: float,
    ) -> Outcome:
        """Hand a miss over to be compared; the near answer instead, on a route that serves near enough ones."""
        question = question_of(body) if key.route.near != "off" else None
        group = group_of(body, self._routes, tenant, controls.namespace) if question else None
        if question is None or group is None:
            return miss
        near = await near_misses.look(Miss(arrived, question, group, key))
        store = self._serving.store
        if near is None or store is None:
            return miss
        try:
            answer = store.get(near.fingerprint)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with us, the upstream can answer
            self._say_broken(error)
            return miss
        if answer is None or self._serving.verdicts.withhold(key.route, near.fingerprint, answer) is not None:
            return miss
        if controls.max_age_s is not None and _age_s(answer, time.time()) > controls.max_age_s:
            return miss
        return Outcome("near", None, key.route.name, answer, near=near)

    def _render(self, outcome: Outcome, answer: Answer, body: Any, now: float) -> Hit:
        response_id, model = next(self._ids), body["model"]
        if body.get("stream"):
            usage = (body.get("stream_options") or {}).get("include_usage", False)
            content_type = b"text/event-stream; charset=utf-8"
            data = stream(answer, response_id=response_id, model=model, include_usage=usage)
        else:
            content_type = b"application/json"
            data = completion(answer, response_id=response_id, model=model)
        # What is left of its time is max-age minus age (RFC 9111, 4.2); private, as all that a key opens.
        lines = (
            b"date: %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nx-prebake: %b\r\nage: %d\r\n"
            b"cache-control: private, max-age=%d\r\nx-prebake-run: %b\r\nx-prebake-snapshot: %b\r\n"
        ) % (
            _http_date(int(now)),
            content_type,
            len(data),
            outcome.cache.encode(),
            _age_s(answer, now),
            (answer.expires_us - answer.baked_us) // 1_000_000,
            answer.run_id.encode(),
            self._serving.version,
        )
        if outcome.near is not None:
            lines += b"x-prebake-similarity: %.4f\r\n" % outcome.near.similarity
        return _new(Hit, (lines, data))

    def _note_hit(
        self, outcome: Outcome, answer: Answer, headers: Headers, asked: Asked, sent_bytes: int, started: float
    ) -> None:
        self._hits.count(outcome.route, outcome.cache, answer, sent_bytes, perf_counter() - started)
        self._note(outcome, headers, asked, 200, answer.message_json if self._log_answers else b"", True)

    def _note(self, outcome: Outcome, headers: Headers, asked: Asked, status: int, tail: bytes, whole: bool) -> None:
        """Hand the request over to the log."""
        if self._log is None or asked.controls.no_store:
            return
        answer, body = outcome.answer, asked.body
        row = (
            asked.at,
            asked.tenant,
            asked.controls.namespace or None,
            self._identity.user(headers, body),
            asked.raw,
            not PEOPLE_FIELDS.isdisjoint(body),
            outcome.cache,
            outcome.reason,
            status,
            answer.prompt_tokens if answer else None,
            answer.completion_tokens if answer else None,
            tail,
            whole,
        )
        self._log.add(_new(LogRow, row))

    def _say_broken(self, error: Exception) -> None:
        """Log once for each snapshot that it has damaged answers."""
        if self._broken_version != self._serving.version:
            self._broken_version = self._serving.version
            logger.error("%s; such requests go to the upstream", error, exc_info=not isinstance(error, PrebakeError))


def marks(cache: str, reason: str | None) -> Headers:
    """The headers that say what the gateway did with a request that it passed on."""
    return [(b"x-prebake", cache.encode()), (b"x-prebake-reason", (reason or "").encode())]


def _pair(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b": ")
    return name, value


def _age_s(answer: Answer, now: float) -> int:
    return max(0, int(now) - answer.baked_us // 1_000_000)


async def _read(receive: Receive, limit: int) -> tuple[bytes, bool] | None:
    """The body, and whether there is more of it than ``limit`` bytes; None if the client left."""
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request":
        return message["body"], False
    parts: list[bytes] = []
    size = 0
    while message["type"] == "http.request":
        parts.append(message["body"])
        size += len(message["body"])
        if not message["more_body"] or size > limit:
            return b"".join(parts), message["more_body"]
        message = await receive()
    return None


def _parse(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


def _may_share(body: Any, controls: Controls) -> bool:
    """Whether a call may be shared: not by who wants no trace of it held here, or a copy of its own kept upstream."""
    return not controls.no_store and not controls.only_if_cached and not body.get("store")


def delivery_is_ours(body: dict[str, Any]) -> bool:
    """Whether the body wants the answer in a way in which a stored one can be given."""
    streamed, options = body.get("stream"), body.get("stream_options")
    if streamed is not None and not isinstance(streamed, bool):
        return False
    if options is None:
        return True
    return (
        streamed is True
        and isinstance(options, dict)
        and STREAM_OPTIONS.issuperset(options)
        and all(isinstance(value, bool) for value in options.values())
    )


@lru_cache(maxsize=2)
def _http_date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
