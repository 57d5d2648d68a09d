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
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from prebake.routes import Route, Routes

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
_CLOSING: Final = " .!?…。！？"  # noqa: RUF001 - full-width closing marks are meant


class Bypass(StrEnum):
    """Why a request is never answered from the store."""

    MALFORMED = "malformed"  # not a chat request we can read; the upstream will say what is wrong
    NO_ROUTE = "no_route"  # no route in the settings takes it
    ROUTE_OFF = "route_off"  # its route is switched off
    NO_TENANT = "no_tenant"  # its route answers per tenant and nobody said which
    SAMPLING = "sampling"  # hotter than the route allows: the caller wants variety
    CHOICES = "choices"  # n > 1
    LOGPROBS = "logprobs"
    NON_TEXT = "non_text"  # images, audio, files, or non-text output asked for
    LIVE = "live"  # asks for a search on the web: the answer depends on now


@dataclass(frozen=True, slots=True)
class Keyed:
    """A request the store may answer."""

    route: Route
    scope: str
    fingerprint: bytes


def fold_text(text: str) -> str:
    """Fold what people type differently and mean alike: Unicode NFKC, case, white space, closing punctuation."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    # Case folding can leave text that normalises further (Unicode 3.13, D145), so normalise once more.
    if not folded.isascii():
        folded = " ".join(unicodedata.normalize("NFKC", folded).split())
    return folded.rstrip(_CLOSING) or folded


def user_turns(body: Mapping[str, Any]) -> int:
    """How many messages the user has written: more than one is a conversation."""
    return sum(1 for message in body["messages"] if message["role"] == "user")


def last_user_text(body: Mapping[str, Any]) -> str:
    """The text of the last user message, for people to read; empty if there is none."""
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            content = message.get("content") or ""
            return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
    return ""


def fingerprint(canonical: bytes) -> bytes:
    """The first 16 bytes of SHA-256 over canonical JSON."""
    return sha256(canonical).digest()[:16]


def key_request(body: Any, routes: Routes, tenant: str | None = None) -> Keyed | Bypass:
    """Find the request's route and fingerprint, or the reason why it is none of ours.

    ``body`` is the parsed JSON body as it came over the wire; it is not changed. Never raises.
    """
    if not isinstance(body, dict) or not isinstance(model := body.get("model"), str):
        return Bypass.MALFORMED
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return Bypass.MALFORMED
    route = routes.match(model, tenant, messages)
    if route is None:
        return Bypass.NO_ROUTE
    if not route.enabled:
        return Bypass.ROUTE_OFF
    if route.scope == "tenant":
        if tenant is None:
            return Bypass.NO_TENANT
        scope = f"tenant/{tenant}"
    else:
        scope = SHARED
    params = canonical_params(body)
    if isinstance(params, Bypass):
        return params
    if params.get("temperature", 1) > route.max_temperature:
        return Bypass.SAMPLING
    folded = canonical_messages(messages, fold=route.fold == "text")
    if isinstance(folded, Bypass):
        return folded
    try:
        canonical = canonical_json(
            {
                "api": API,
                "knowledge": route.knowledge,
                "messages": folded,
                "model": routes.alias(model),
                "params": params,
                "route": route.name,
                "scope": scope,
            }
        )
    except (TypeError, ValueError, RecursionError):
        return Bypass.MALFORMED
    return Keyed(route, scope, fingerprint(canonical))


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no white space, UTF-8. Raises TypeError for what JSON cannot say (lone surrogates, deep nesting)."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def model_request(body: Mapping[str, Any], routes: Routes) -> bytes:
    """The canonical JSON of what the model is asked, texts as they were written: what the night bakes.

    The body must have been accepted by :func:`key_request`.
    """
    messages = canonical_messages(body["messages"], fold=False)
    params = canonical_params(body)
    if isinstance(messages, Bypass) or isinstance(params, Bypass):
        raise ValueError("model_request() takes only what key_request() accepted")
    return canonical_json({"messages": messages, "model": routes.alias(body["model"]), "params": params})


def canonical_params(body: Mapping[str, Any]) -> dict[str, Any] | Bypass:
    """Every parameter that changes the answer, by one name each, defaults left out."""
    params: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in DELIVERY_FIELDS or name == "messages" or name == "model":
            continue
        if name in _NUMBERS:
            if isinstance(value, bool) or not isinstance(value, int | float):
                return Bypass.MALFORMED
            if isinstance(value, float):
                if not math.isfinite(value):
                    return Bypass.MALFORMED
                if value.is_integer():
                    value = int(value)
        elif name == "stop" and isinstance(value, str):
            value = [value]
        if name in DEFAULTS and value == DEFAULTS[name]:
            continue
        params[name] = value
    if not params:
        return params
    # The old and the new name of one limit; the new one wins where both are given, as in vLLM and OpenAI.
    if "max_completion_tokens" in params:
        params["max_tokens"] = params.pop("max_completion_tokens")
    if params.get("tool_choice") == ("auto" if "tools" in params else "none"):
        del params["tool_choice"]
    return _bypass_by_params(params) or params


def _bypass_by_params(params: Mapping[str, Any]) -> Bypass | None:
    if params.get("n", 1) != 1:
        return Bypass.CHOICES
    if "logprobs" in params or "top_logprobs" in params:
        return Bypass.LOGPROBS
    if "modalities" in params or "audio" in params:
        return Bypass.NON_TEXT
    if "web_search_options" in params:
        return Bypass.LIVE
    return None


def canonical_messages(messages: list[Any], *, fold: bool) -> list[dict[str, Any]] | Bypass:
    """The messages with absent and null fields alike, and one text part alike with a plain string."""
    result = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return Bypass.MALFORMED
        canonical = {name: value for name, value in message.items() if value is not None}
        if "audio" in canonical:
            return Bypass.NON_TEXT
        content = canonical.get("content", "")
        if isinstance(content, list):
            content = _text_parts(content)
            if isinstance(content, Bypass):
                return content
        elif not isinstance(content, str):
            return Bypass.MALFORMED
        if fold:
            content = (
                fold_text(content)
                if isinstance(content, str)
                else [{**part, "text": fold_text(part["text"])} for part in content]
            )
        canonical["content"] = content
        result.append(canonical)
    return result


def _text_parts(parts: list[Any]) -> str | list[dict[str, Any]] | Bypass:
    texts = []
    for part in parts:
        if not isinstance(part, dict):
            return Bypass.MALFORMED
        if part.get("type") not in ("text", "refusal"):
            return Bypass.NON_TEXT
        if part["type"] == "refusal" or not isinstance(part.get("text"), str):
            return Bypass.MALFORMED
        texts.append({"type": "text", "text": part["text"]})
    return texts[0]["text"] if len(texts) == 1 else texts
