"""The canonical request and its fingerprint: the one key that ties night and day together.

In: the JSON body of a chat-completion request, the route it belongs to, the tenant who asks, and the namespace if any.
Out: 16 bytes that are equal exactly when the same answer may be given, or the typed reason why
the request must not be answered from the store. The gateway and ingest call this same code.

The fingerprint is the first 128 bits of SHA-256 over the canonical JSON: keys sorted by code
point, no white space, UTF-8, whole floats written as integers, defaults and fields that do not
change the answer left out (field meanings: OpenAI API reference, "Create chat completion").
Anyone with SHA-256 can recompute it: ``left(sha256(canonical), 32)`` as hexadecimal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from prebake.folding import fold_text, folded_json
from prebake.routes import Route, Routes

if TYPE_CHECKING:
    from hashlib import _Hash as HASH

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
    "audio": None,
    "web_search_options": None,
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
# At most some 25 MB are remembered.
_MOST_REMEMBERED: Final = 512
_LONGEST_REMEMBERED: Final = 16_384  # bytes
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_new: Final = tuple.__new__  # named tuples the short way: a lookup makes three


class Bypass(StrEnum):
    """Why a request is never answered from the store. Where several hold, the first in this order is given."""

    MALFORMED = "malformed"  # not a chat request we can read; the upstream will say what is wrong
    NO_ROUTE = "no_route"  # no route in the settings takes it
    ROUTE_OFF = "route_off"  # its route is switched off
    NO_TENANT = "no_tenant"  # its route answers per tenant and nobody said which
    NAMESPACE = "namespace"  # its namespace is none: too long, or of other letters than allowed
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


class Asked(NamedTuple):
    """A request the store may answer, with all that the query log keeps of it."""

    route: Route
    scope: str
    fingerprint: bytes
    request: bytes  # model_request()
    turns: int  # user_turns()
    prompt: str  # last_user_text()


class _BypassedError(Exception):
    def __init__(self, reason: Bypass) -> None:
        self.reason = reason


@dataclass(eq=False, slots=True)
class Template:
    """Requests that differ only in the text of their last message: JSON up to the text, and after it."""

    route: Route
    scope: str
    fold: bool
    copy: Callable[[], HASH]  # the hash of the canonical request up to the text
    tail: bytes
    asked_head: bytes  # of what the model is asked
    asked_tail: bytes
    turns: int

    def fingerprints(self, texts: Iterable[str]) -> list[bytes]:
        """The fingerprint of the request with each of the texts. Raises TypeError for lone surrogates."""
        copy, tail = self.copy, self.tail
        write = folded_json if self.fold else orjson.dumps
        found = []
        for text in texts:
            hashed = copy()
            hashed.update(write(text) + tail)
            found.append(hashed.digest()[:16])
        return found


def key_request(body: Any, routes: Routes, tenant: str | None = None, namespace: str = "") -> Keyed | Bypass:
    """Find the request's route and fingerprint, or the reason why it is none of ours.

    ``body`` is the parsed JSON body as it came over the wire; it is not changed. ``namespace`` is the client's own
    partition of its scope (:func:`is_namespace`). Never raises.
    """
    try:
        split = _split(body, routes, tenant, namespace)
        if split is None:
            route, scope, asked = _canonical(body, routes, tenant, namespace)
            digest = sha256(_json(asked)).digest()
        else:
            text, template = split
            route, scope = template.route, template.scope
            hashed = template.copy()
            hashed.update((folded_json(text) if template.fold else orjson.dumps(text)) + template.tail)
            digest = hashed.digest()
    except _BypassedError as bypassed:
        return bypassed.reason
    except (TypeError, ValueError, RecursionError):  # what JSON cannot say: lone surrogates, huge integers ...
        return Bypass.MALFORMED
    return _new(Keyed, (route, scope, digest[:16]))


def read_request(body: Any, routes: Routes, tenant: str | None = None, namespace: str = "") -> Asked | Bypass:
    """What :func:`key_request` finds, and what the night and its readers need beside it, in one pass. Never raises."""
    try:
        split = _split(body, routes, tenant, namespace)
        if split is None:
            keyed = key_request(body, routes, tenant, namespace)
            if isinstance(keyed, Bypass):
                return keyed
            return Asked(*keyed, model_request(body, routes), user_turns(body), last_user_text(body))
        text, template = split
        written = orjson.dumps(text)
        hashed = template.copy()
        hashed.update((folded_json(text) if template.fold else written) + template.tail)
    except _BypassedError as bypassed:
        return bypassed.reason
    except (TypeError, ValueError, RecursionError):
        return Bypass.MALFORMED
    request = template.asked_head + written + template.asked_tail
    return _new(Asked, (template.route, template.scope, hashed.digest()[:16], request, template.turns, text))


def template_of(
    body: dict[str, Any], routes: Routes, tenant: str | None = None, namespace: str = ""
) -> Template | Bypass | None:
    """What requests have in common that differ from this one only in the text of their last message.

    Bypass: why none of them is answered from the store. None: each has to be read by itself. Never raises.
    """
    try:
        split = _split(body, routes, tenant, namespace)
    except _BypassedError as bypassed:
        return bypassed.reason
    except (TypeError, ValueError, RecursionError):
        return Bypass.MALFORMED
    return None if split is None else split[1]


def with_question(body: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The body with that text as the content of its last message."""
    *others, last = body["messages"]
    return {**body, "messages": [*others, {**last, "content": text}]}


def canonical_request(body: Any, routes: Routes, tenant: str | None = None, namespace: str = "") -> bytes | Bypass:
    """The canonical JSON whose SHA-256 is the fingerprint, for people who want to see or recompute a key."""
    try:
        return _json(_canonical(body, routes, tenant, namespace)[2])
    except _BypassedError as bypassed:
        return bypassed.reason


def model_request(body: Mapping[str, Any], routes: Routes) -> bytes:
    """The canonical JSON of what the model is asked, texts as they were written: what the night bakes.

    Raises ValueError for a body that :func:`key_request` does not accept.
    """
    try:
        return _json(_asked(body, routes))
    except _BypassedError as bypassed:
        raise ValueError(f"model_request() takes only what key_request() accepts: {bypassed.reason}") from None


def is_namespace(name: str) -> bool:
    """Whether that is a namespace: 1 to 64 letters, digits and ``. _ : -`` of ASCII."""
    return _NAMESPACE.fullmatch(name) is not None


def fingerprint_of(request: Mapping[str, Any], route: Route, scope: str) -> bytes:
    """The fingerprint of what :func:`model_request` kept of a request, on its route and in its scope.

    Raises ValueError for what :func:`model_request` cannot have written.
    """
    asked = {name: request[name] for name in ("model", "params")}
    messages = _messages(request["messages"], route.fold == "text")
    key = {"api": API, "knowledge": route.knowledge, "messages": messages, "route": route.name, "scope": scope}
    try:
        return sha256(_json(key | asked)).digest()[:16]
    except _BypassedError as bypassed:
        raise ValueError(f"fingerprint_of() takes only what model_request() wrote: {bypassed.reason}") from None


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


def _split(body: Any, routes: Routes, tenant: str | None, namespace: str) -> tuple[str, Template] | None:
    """The user's text and what is around it, where there is but one short exchange: a message, perhaps one before it.

    Model, parameters and system prompt come back in request after request: their part is worked out once.
    """
    try:
        messages = body["messages"]
        last = messages[-1]
        text = last["content"]
        if not (
            type(text) is str
            and last["role"] == "user"
            and len(last) == 2
            and len(messages) <= 2
            and type(messages) is list
            and type(last) is type(body) is dict
        ):
            return None
    except (LookupError, TypeError):  # not such an exchange; whether it is a request at all, others find out
        return None
    around = body.copy()
    around["messages"] = messages[:-1]
    if not DELIVERY_FIELDS.isdisjoint(around):  # another user's request has the same template
        for name in DELIVERY_FIELDS.intersection(around):
            del around[name]
    given = orjson.dumps((tenant, namespace, around))
    return text, routes.templates.get(given) or _remembered(given, body, routes, tenant, namespace)


def _remembered(given: bytes, body: dict[str, Any], routes: Routes, tenant: str | None, namespace: str) -> Template:
    """Work the template out with an empty text, and remember it under the bytes of all that it depends on."""
    blank = body | {"messages": [*body["messages"][:-1], {"role": "user", "content": ""}]}
    route, scope, canonical = _canonical(blank, routes, tenant, namespace)
    asked = _asked(blank, routes)
    head, tail = _around_text(canonical, ("api", "knowledge", "messages"))
    template = Template(
        route,
        scope,
        route.fold == "text",
        sha256(head).copy,
        tail,
        *_around_text(asked, ("messages",)),
        user_turns(blank),
    )
    # NaN and infinities are written as null: what has a null is not remembered but looked at each time.
    if len(given) <= _LONGEST_REMEMBERED and b"null" not in given.removeprefix(b"[null"):
        if len(routes.templates) >= _MOST_REMEMBERED:
            routes.templates.clear()
        routes.templates[given] = template
    return template


def _around_text(value: Mapping[str, Any], upto_messages: tuple[str, ...]) -> tuple[bytes, bytes]:
    """The JSON before and after the empty text of the last message."""
    whole = _json(value)
    text = len(_json({name: value[name] for name in upto_messages})) - len(b'"","role":"user"}]}')
    return whole[:text], whole[text + len(b'""') :]


def _canonical(body: Any, routes: Routes, tenant: str | None, namespace: str) -> tuple[Route, str, dict[str, Any]]:
    """The route, the scope and what the canonical JSON says."""
    if not isinstance(body, dict):
        raise _BypassedError(Bypass.MALFORMED)
    model = body.get("model")
    messages = body.get("messages")
    if not isinstance(model, str) or not isinstance(messages, list) or not messages:
        raise _BypassedError(Bypass.MALFORMED)
    route = routes.match(model, tenant, messages)
    if route is None:
        raise _BypassedError(Bypass.NO_ROUTE)
    if not route.enabled:
        raise _BypassedError(Bypass.ROUTE_OFF)
    if route.scope == "tenant" and not tenant:
        raise _BypassedError(Bypass.NO_TENANT)
    scope = SHARED if route.scope == "shared" else f"tenant/{tenant}"
    if namespace:
        # In front, and without a "/": so no tenant's name and no namespace together spell another scope.
        if not is_namespace(namespace):
            raise _BypassedError(Bypass.NAMESPACE)
        scope = f"namespace/{namespace}/{scope}"
    params = _params(body)
    if params.get("temperature", 1) > route.max_temperature:
        raise _BypassedError(Bypass.SAMPLING)
    return (
        route,
        scope,
        {
            "api": API,
            "knowledge": route.knowledge,
            "messages": _messages(messages, route.fold == "text"),
            "model": routes.alias(model),
            "params": params,
            "route": route.name,
            "scope": scope,
        },
    )


def _asked(body: Mapping[str, Any], routes: Routes) -> dict[str, Any]:
    """What the model is asked, texts as they were written."""
    return {
        "messages": _messages(body["messages"], fold=False),
        "model": routes.alias(body["model"]),
        "params": _params(body),
    }


def _json(value: Any) -> bytes:
    """Keys sorted by code point, no white space, UTF-8; what JSON cannot say (lone surrogates ...) is malformed."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError, RecursionError):
        raise _BypassedError(Bypass.MALFORMED) from None


def _check(value: Any, depth: int = _DEEPEST) -> None:
    """Refuse NaN and infinities, which would be written as null, and what is nested too deep."""
    if isinstance(value, dict | list):
        if not depth:
            raise _BypassedError(Bypass.MALFORMED)
        for inner in value.values() if isinstance(value, dict) else value:
            _check(inner, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _BypassedError(Bypass.MALFORMED)


def _params(body: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter that changes the answer, by one name each, defaults left out."""
    params: dict[str, Any] = {}
    reasons: list[Bypass] = []
    for name, value in body.items():
        if value is None or name in _NOT_PARAMS:
            continue
        if name in _NUMBERS:
            # Whole floats become integers; True and False are no numbers here, though Python thinks so.
            if type(value) is float:
                if value.is_integer():
                    value = int(value)
                elif not math.isfinite(value):
                    reasons.append(Bypass.MALFORMED)
            elif type(value) is not int:
                reasons.append(Bypass.MALFORMED)
        elif name == "stop" and isinstance(value, str):
            value = [value]
        elif not isinstance(value, str):
            _check(value)
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
    if "max_completion_tokens" in params:
        # The new name of the limit; it wins where both are given, as in vLLM and OpenAI.
        params["max_tokens"] = params.pop("max_completion_tokens")
    if "tool_choice" in params and params["tool_choice"] == ("auto" if "tools" in params else "none"):
        del params["tool_choice"]
    return params


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
                content = fold_text(content)
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
    canonical = _given(message)
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
        canonical = _given(part)
        text = canonical.get(kind)
        if not isinstance(text, str):
            raise _BypassedError(Bypass.MALFORMED)
        if fold:
            canonical[kind] = fold_text(text)
        result.append(canonical)
    if len(result) == 1 and result[0].keys() == {"type", "text"}:
        return str(result[0]["text"])
    return result


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not null."""
    given = {name: value for name, value in values.items() if value is not None}
    _check(given)
    return given
