"""The canonical request and its fingerprint: the one key that ties night and day together.

In: the JSON body of a chat-completion request, the route it belongs to, the tenant who asks.
Out: 16 bytes that are equal exactly when the same answer may be given, or the typed reason why
the request must not be answered from the store. The gateway and ingest call this same code.

The fingerprint is the first 128 bits of SHA-256 over the canonical JSON: keys sorted by code
point, no white space, UTF-8, whole floats written as integers, defaults and fields that do not
change the answer left out (field meanings: OpenAI API reference, "Create chat completion").
Anyone with SHA-256 can recompute it: ``left(sha256(canonical), 32)`` as hexadecimal.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

import orjson

from prebake.routes import Match, Route, Routes

API: Final = "chat.completions"
SHARED: Final = "shared"

# Fields that say how or to whom the answer is delivered, never what it is.
DELIVERY_FIELDS: Final = frozenset(
    {
        "stream",
        "stream_options",
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)
_NOT_PARAMS: Final = DELIVERY_FIELDS | {"messages", "model"}

# What OpenAI's reference gives as the default: present or absent means the same request.
DEFAULTS: Final[Mapping[str, Any]] = {
    "temperature": 1,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "logit_bias": {},
    "stop": [],
    "tools": [],
}
_NUMBERS: Final = frozenset(
    {
        "temperature",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "seed",
        "top_logprobs",
    }
)
_DEEPEST: Final = 100  # levels of nesting in one parameter
_CLOSING: Final = " .!?…。！？"  # noqa: RUF001 - full-width closing marks are meant


class Bypass(StrEnum):
    """Why a request is never answered from the store. Where several hold, the first in this order is given."""

    MALFORMED = "malformed"  # not a chat request we can read; the upstream will say what is wrong
    NO_ROUTE = "no_route"  # no route in the settings takes it
    ROUTE_OFF = "route_off"  # its route is switched off
    NO_TENANT = "no_tenant"  # its route answers per tenant and nobody said which
    SAMPLING = "sampling"  # hotter than the route allows: the caller wants variety
    CHOICES = "choices"  # n > 1
    LOGPROBS = "logprobs"
    NON_TEXT = "non_text"  # images, audio, files, or non-text output asked for
    LIVE = "live"  # asks for a search on the web: the answer depends on now


# Parameters that the store cannot honour, unless they have their default.
_UNSERVED: Final[Mapping[str, Bypass]] = {
    "n": Bypass.CHOICES,
    "logprobs": Bypass.LOGPROBS,
    "top_logprobs": Bypass.LOGPROBS,
    "modalities": Bypass.NON_TEXT,
    "audio": Bypass.NON_TEXT,
    "web_search_options": Bypass.LIVE,
}


class Keyed(NamedTuple):
    """A request the store may answer."""

    route: Route
    scope: str
    fingerprint: bytes


class _BypassedError(Exception):
    def __init__(self, reason: Bypass) -> None:
        self.reason = reason


def key_request(body: Any, routes: Routes, tenant: str | None = None) -> Keyed | Bypass:
    """Find the request's route and fingerprint, or the reason why it is none of ours.

    ``body`` is the parsed JSON body as it came over the wire; it is not changed. Never raises.
    """
    try:
        frame, canonical = _canonical(body, routes, tenant)
    except _BypassedError as bypassed:
        return bypassed.reason
    return Keyed(frame.route, frame.scope, sha256(canonical).digest()[:16])


def canonical_request(body: Any, routes: Routes, tenant: str | None = None) -> bytes | Bypass:
    """The canonical JSON whose SHA-256 is the fingerprint, for people who want to see or recompute a key."""
    try:
        return _canonical(body, routes, tenant)[1]
    except _BypassedError as bypassed:
        return bypassed.reason


def model_request(body: Mapping[str, Any], routes: Routes) -> bytes:
    """The canonical JSON of what the model is asked, texts as they were written: what the night bakes.

    Raises ValueError for a body that :func:`key_request` does not accept.
    """
    try:
        return _json(
            {
                "messages": _messages(body["messages"], fold=False),
                "model": routes.alias(body["model"]),
                "params": _params(body),
            }
        )
    except _BypassedError as bypassed:
        raise ValueError(f"model_request() takes only what key_request() accepts: {bypassed.reason}") from None


def fold_text(text: str) -> str:
    """Fold what people type differently and mean alike: Unicode NFKC, case, white space, closing punctuation."""
    if text.isascii():  # nothing to normalise
        folded = " ".join(text.lower().split())
    else:
        folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        # Case folding can leave text that normalises further (Unicode 3.13, D145), so normalise once more.
        folded = " ".join(unicodedata.normalize("NFKC", folded).split())
    return folded.rstrip(_CLOSING) or folded


@lru_cache(maxsize=256)
def _fold_remembered(text: str) -> str:
    return fold_text(text)


def _fold_again(text: str) -> str:
    """Fold a text that the next request is likely to have too, such as a system prompt; at most 32 MB are kept."""
    return _fold_remembered(text) if len(text) <= 16_384 else fold_text(text)


def user_turns(body: Mapping[str, Any]) -> int:
    """How many messages the user has written: more than one is a conversation."""
    return sum(1 for message in body["messages"] if message["role"] == "user")


def last_user_text(body: Mapping[str, Any]) -> str:
    """The text of the last user message, for people to read; empty if there is none."""
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            content = message.get("content") or ""
            return content if isinstance(content, str) else "\n".join(part.get("text") or "" for part in content)
    return ""


class _Frame(NamedTuple):
    """What is the same in the canonical JSON of all requests of one match; sorted keys make it three pieces."""

    route: Route
    scope: str
    fold: bool
    max_temperature: float
    head: bytes
    middle: bytes
    tail: bytes


def _canonical(body: Any, routes: Routes, tenant: str | None) -> tuple[_Frame, bytes]:
    """The canonical JSON ``{"api", "knowledge", "messages", "model", "params", "route", "scope"}``, put together."""
    if not isinstance(body, dict):
        raise _BypassedError(Bypass.MALFORMED)
    model = body.get("model")
    messages = body.get("messages")
    if not isinstance(model, str) or not isinstance(messages, list) or not messages:
        raise _BypassedError(Bypass.MALFORMED)
    match = routes.match(model, tenant, messages)
    if match is None:
        raise _BypassedError(Bypass.NO_ROUTE)
    frame: _Frame = match.frame or _frame(match)
    params = _params(body)
    if params.get("temperature", 1) > frame.max_temperature:
        raise _BypassedError(Bypass.SAMPLING)
    asked = _json(_messages(messages, frame.fold))
    return frame, b"".join((frame.head, asked, frame.middle, _json(params) if params else b"{}", frame.tail))


def _frame(match: Match) -> _Frame:
    route = match.route
    if not route.enabled:
        raise _BypassedError(Bypass.ROUTE_OFF)
    if route.scope == "shared":
        scope = SHARED
    elif match.tenant:
        scope = f"tenant/{match.tenant}"
    else:
        raise _BypassedError(Bypass.NO_TENANT)
    frame = _Frame(
        route,
        scope,
        route.fold == "text",
        route.max_temperature,
        b'{"api":%b,"knowledge":%b,"messages":' % (_json(API), _json(route.knowledge)),
        b',"model":%b,"params":' % _json(match.model),
        b',"route":%b,"scope":%b}' % (_json(route.name), _json(scope)),
    )
    match.frame = frame
    return frame


def _json(value: Any) -> bytes:
    """Keys sorted by code point, no white space, UTF-8; what JSON cannot say (lone surrogates ...) is malformed."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError, RecursionError):
        raise _BypassedError(Bypass.MALFORMED) from None


def _checked(value: Any, depth: int = _DEEPEST) -> Any:
    """The value itself; NaN and infinities are malformed, because they would be written as null."""
    if isinstance(value, dict | list):
        if not depth:
            raise _BypassedError(Bypass.MALFORMED)
        for inner in value.values() if isinstance(value, dict) else value:
            _checked(inner, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _BypassedError(Bypass.MALFORMED)
    return value


def _params(body: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter that changes the answer, by one name each, defaults left out."""
    params: dict[str, Any] = {}
    reasons: list[Bypass] = []
    for name, value in body.items():
        if value is None or name in _NOT_PARAMS:
            continue
        if name in _NUMBERS:
            value = _number(value)
            if value is None:
                reasons.append(Bypass.MALFORMED)
                continue
        elif isinstance(value, str):
            if name == "stop":
                value = [value]
        else:
            _checked(value)
        if name in DEFAULTS:
            default = DEFAULTS[name]
            # The type as well: 0 == False and 1 == True in Python, not in JSON.
            if value == default and type(value) is type(default):
                continue
        if name in _UNSERVED:
            reasons.append(_UNSERVED[name])
        params[name] = value
    if reasons:
        raise _BypassedError(next(reason for reason in Bypass if reason in reasons))
    # The old and the new name of one limit; the new one wins where both are given, as in vLLM and OpenAI.
    if "max_completion_tokens" in params:
        params["max_tokens"] = params.pop("max_completion_tokens")
    if "tool_choice" in params and params["tool_choice"] == ("auto" if "tools" in params else "none"):
        del params["tool_choice"]
    return params


def _number(value: Any) -> int | float | None:
    """The number, whole floats as integers; None for what is no finite number."""
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _messages(messages: list[Any], fold: bool) -> list[dict[str, Any]]:
    """The messages with absent and null fields alike, and one text part alike with a plain string."""
    result: list[dict[str, Any]] = []
    for message in messages:
        if not isinstance(message, dict):
            raise _BypassedError(Bypass.MALFORMED)
        role = message.get("role")
        content = message.get("content")
        if not isinstance(role, str):
            raise _BypassedError(Bypass.MALFORMED)
        if isinstance(content, str):
            if fold:
                content = fold_text(content) if role == "user" else _fold_again(content)
        elif content is not None:
            content = _parts(content, fold)
        if len(message) == 2 and content is not None:  # nothing but role and content: the common case
            result.append({"content": content, "role": role})
        else:
            result.append(_message(message, content))
    return result


def _message(message: Mapping[str, Any], content: Any) -> dict[str, Any]:
    if message.get("audio") is not None:
        raise _BypassedError(Bypass.NON_TEXT)
    canonical = {name: _checked(value) for name, value in message.items() if value is not None and name != "content"}
    if content is not None:
        canonical["content"] = content
    return canonical


def _parts(parts: Any, fold: bool) -> str | list[dict[str, Any]]:
    if not isinstance(parts, list):
        raise _BypassedError(Bypass.MALFORMED)
    result: list[dict[str, Any]] = []
    for part in parts:
        if not isinstance(part, dict):
            raise _BypassedError(Bypass.MALFORMED)
        kind = part.get("type")
        if kind != "text" and kind != "refusal":
            raise _BypassedError(Bypass.NON_TEXT)
        if not isinstance(part.get(kind), str):
            raise _BypassedError(Bypass.MALFORMED)
        canonical = {name: _checked(value) for name, value in part.items() if value is not None}
        if fold:
            canonical[kind] = fold_text(canonical[kind])
        result.append(canonical)
    if len(result) == 1 and result[0].keys() == {"type", "text"}:
        text: str = result[0]["text"]
        return text
    return result
