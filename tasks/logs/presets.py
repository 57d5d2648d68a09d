"""Layouts of query logs: where each finds time, body, user, tenant and tokens of one row.

In: one row of a log as a dict. Out: an Entry, or RowError (cannot be read) or NotARequestError (passed over).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from prebake.request import DELIVERY_FIELDS
from prebake.tables import GATEWAY_LOG
from tasks.logs.trouble import NotARequestError, RowError

if TYPE_CHECKING:
    from prebake.settings import Columns

CHAT_PATH: Final = "/chat/completions"
_TIMES: Final = ("timestamp", "ts", "created", "created_at")
# What a body line may carry beside the request itself; left in, it would make every request look unlike any other.
_BESIDE: Final = frozenset({*_TIMES, "id", "custom_id", "tenant", "usage", "response"}) | DELIVERY_FIELDS
# Marks what LiteLLM has left out of a long text (litellm.constants.LITELLM_TRUNCATED_PAYLOAD_FIELD).
_LITELLM_CUT: Final = "(litellm_truncated"
# Where layouts keep counts of tokens, and the names of those that are read.
_USAGES: Final = frozenset({"usage", "usageDetails", "usage_details"})
_COUNTS: Final = frozenset(
    {"prompt_tokens", "completion_tokens", "input", "output", "promptTokens", "completionTokens"}
)
LOOK_INTO_TEXTS: Final = frozenset({"litellm", "langfuse"})  # for JSON, or for a mark that something is missing
_NOTHING: Final[dict[str, Any]] = {}


class Entry(NamedTuple):
    """One request as a log has it. ``body`` may be changed by its reader: it is nobody else's."""

    time: Any
    body: dict[str, Any]
    tenant: str | None
    user: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cache: str | None = None
    user_hash: int | None = None  # where the log has only the hash, made with the store's own salt
    namespace: str = ""


Preset = Callable[[dict[str, Any]], Entry]
Path = tuple[str | int, ...]  # of a value in a row: the keys and places that lead to it


def preset_named(name: str, columns: Columns | None) -> Preset:
    """The layout of that name; ``columns`` says where the one called columns finds its values."""
    return _by_columns(columns) if columns is not None else _LAYOUTS[name]


def looks_at(name: str, columns: Columns | None) -> Callable[[Path], bool]:
    """Whether the layout may look at the value at a path of a row; what it does not look at may be anything."""
    if columns is not None:
        paths = [path for _, path in columns]
        names = frozenset([*paths, *(path.partition(".")[0] for path in paths)])
        return lambda path: path[0] in names
    if name == "openai":
        return _openai_looks_at
    looked_at = frozenset(columns_of(name) or ())
    return lambda path: path[0] in looked_at and (len(path) == 1 or path[0] not in _USAGES or path[1] in _COUNTS)


def _openai_looks_at(path: Path) -> bool:
    if path[0] == "metadata" or path[:2] == ("body", "metadata"):
        return path[-1] in ("metadata", "tenant", *_TIMES)
    if path[0] in ("usage", "response"):
        return "usage" in path[:-1] and path[-1] in _COUNTS
    return path[0] not in ("id", "custom_id")


def is_plain(name: str, text: str) -> bool:
    """Whether a layout that looks into texts takes this one for no more than a text."""
    if name == "litellm":
        return _LITELLM_CUT not in text
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return True
    return False


def columns_of(name: str) -> tuple[str, ...] | None:
    """The only columns of a Parquet file that the layout looks at; None: any may matter."""
    return {
        "prebake": tuple(name for name in GATEWAY_LOG.schema.names if name != "answer"),  # long, and nothing to a night
        "litellm": _LITELLM,
        "langfuse": _LANGFUSE,
    }.get(name)


def read_prebake(row: dict[str, Any]) -> Entry:
    """A row of the gateway's own log (prebake.tables.GATEWAY_LOG)."""
    if row.get("status", 200) != 200:
        raise NotARequestError("not answered")
    user_hash = row.get("user_hash")
    if user_hash is not None and not isinstance(user_hash, int):
        raise RowError("user_hash: expected a whole number")
    return Entry(
        row.get("ts"),
        _object(row.get("body"), "body"),
        _text(row.get("tenant"), "tenant"),
        None,
        _count(row.get("prompt_tokens"), "prompt_tokens"),
        _count(row.get("completion_tokens"), "completion_tokens"),
        _text(row.get("cache"), "cache"),
        user_hash,
        _text(row.get("namespace"), "namespace") or "",  # segments of before there were namespaces have none
    )


def read_openai(row: dict[str, Any]) -> Entry:
    """A chat request body, or an object with it under ``body`` as in OpenAI Batch input (method, url, body).

    Time: ``timestamp``, ``ts``, ``created`` or ``created_at`` beside the body, or in its ``metadata``.
    User: ``user`` beside the body, else the body's ``user`` or ``safety_identifier``. Tenant: ``tenant`` beside the
    body, else in its ``metadata``. Tokens: ``usage``, or that of ``response``, beside the body.
    """
    if "url" in row and not (isinstance(url := row["url"], str) and url.endswith(CHAT_PATH)):
        raise NotARequestError("not a chat request")
    if "body" in row:
        body = beside = _object(row["body"], "body")
    else:
        body, beside = {name: value for name, value in row.items() if name not in _BESIDE}, row
    metadata = beside.get("metadata")
    if not isinstance(metadata, dict):
        metadata = _NOTHING
    time = row.get("timestamp")
    if time is None:
        time = _first(_TIMES, row, metadata)
    tenant = row.get("tenant")
    if tenant is None:
        tenant = metadata.get("tenant")
    user = row.get("user") or beside.get("user") or beside.get("safety_identifier")
    prompt_tokens, completion_tokens = _usage(row) if "usage" in row or "response" in row else (None, None)
    if type(tenant) is not str or not tenant:
        tenant = _text(tenant, "tenant")
    if type(user) is not str or not user:
        user = _text(user, "user")
    return tuple.__new__(Entry, (time, body, tenant, user, prompt_tokens, completion_tokens, None, None, ""))


_LITELLM: Final = (
    "startTime",
    "call_type",
    "status",
    "proxy_server_request",
    "messages",
    "model_group",
    "model",
    "end_user",
    "user",
    "team_id",
    "prompt_tokens",
    "completion_tokens",
    "cache_hit",
)


def read_litellm(row: dict[str, Any]) -> Entry:
    """A row of LiteLLM's table ``LiteLLM_SpendLogs``, as the database or ``/spend/logs`` gives it.

    The request is the client's own body in ``proxy_server_request`` (LiteLLM keeps it where
    ``store_prompts_in_spend_logs`` is on); older rows have only ``messages``. Tenant: ``team_id``. User: ``end_user``,
    else ``user``.
    """
    if row.get("status") == "failure":
        raise NotARequestError("not answered")
    if row.get("call_type", "completion") not in ("completion", "acompletion"):
        raise NotARequestError("not a chat request")
    stored = _json(row.get("proxy_server_request"), "proxy_server_request")
    body = stored.get("body", stored) if isinstance(stored, dict) else None
    if not isinstance(body, dict) or not body:
        messages = _json(row.get("messages"), "messages")
        if not messages:
            raise RowError("no request text: switch on LiteLLM's general_settings.store_prompts_in_spend_logs")
        body = {"messages": messages}
    if _cut_by_litellm(body.get("messages")):
        raise RowError("LiteLLM has cut the text: raise its MAX_STRING_LENGTH_PROMPT_IN_DB")
    body.setdefault("model", row.get("model_group") or row.get("model"))
    return Entry(
        row.get("startTime"),
        body,
        _text(row.get("team_id"), "team_id"),
        _text(row.get("end_user") or row.get("user") or body.get("user"), "user"),
        _count(row.get("prompt_tokens"), "prompt_tokens"),
        _count(row.get("completion_tokens"), "completion_tokens"),
    )


def _cut_by_litellm(messages: Any) -> bool:
    return _LITELLM_CUT in orjson.dumps(messages).decode()


_LANGFUSE: Final = (
    "type",
    "startTime",
    "start_time",
    "timestamp",
    "input",
    "model",
    "providedModelName",
    "provided_model_name",
    "modelParameters",
    "model_parameters",
    "usage",
    "usageDetails",
    "usage_details",
    "userId",
    "user_id",
    "metadata",
)
_NO_VALUE: Final = ("", "inf", "Infinity", "null", "None")


def read_langfuse(row: dict[str, Any]) -> Entry:
    """A generation as Langfuse exports it: from its blob storage export (snake case), its API or its UI (camel case).

    ``input`` holds the messages, an object with them, or one prompt; spans and events are passed over. Tenant:
    ``metadata.tenant``, if the application writes one.
    """
    if row.get("type", "GENERATION") != "GENERATION":
        raise NotARequestError("not a generation")
    metadata = _json(row.get("metadata"), "metadata")
    parameters = _json(_first(("modelParameters", "model_parameters"), row), "model parameters")
    body = _langfuse_body(row.get("input"))
    for name, value in (parameters or {}).items() if isinstance(parameters, dict) else ():
        if value is not None and value not in _NO_VALUE:
            body.setdefault(name, _number(value))
    body.setdefault("model", _first(("model", "providedModelName", "provided_model_name"), row))
    usage = _json(_first(("usageDetails", "usage_details", "usage"), row), "usage")
    usage = usage if isinstance(usage, dict) else {}
    return Entry(
        _first(("startTime", "start_time", "timestamp"), row),
        body,
        _text(metadata.get("tenant") if isinstance(metadata, dict) else None, "metadata.tenant"),
        _text(_first(("userId", "user_id"), row), "user id"),
        _count(_first(("input", "promptTokens", "prompt_tokens"), usage), "usage.input"),
        _count(_first(("output", "completionTokens", "completion_tokens"), usage), "usage.output"),
    )


def _langfuse_body(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return {"messages": [{"role": "user", "content": value}]}
    if isinstance(value, dict) and "messages" in value:
        return value
    if isinstance(value, list):
        return {"messages": value}
    if isinstance(value, dict) and "role" in value:
        return {"messages": [value]}
    if isinstance(value, str) and value:
        return {"messages": [{"role": "user", "content": value}]}
    raise RowError("input: expected messages, an object with messages, or a prompt")


def _number(value: Any) -> Any:
    """Langfuse keeps parameters as texts: '0.2' is meant as 0.2."""
    if isinstance(value, str):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def _by_columns(columns: Columns) -> Preset:
    def read(row: dict[str, Any]) -> Entry:
        if columns.body:
            body = _object(_at(row, columns.body), columns.body)
        elif columns.prompt:
            prompt = _text(_at(row, columns.prompt), columns.prompt)
            if prompt is None:
                raise RowError(f"{columns.prompt}: no prompt")
            body = {"messages": [{"role": "user", "content": prompt}]}
        else:
            body = {"messages": _json(_at(row, columns.messages), columns.messages)}
        if (model := _at(row, columns.model)) is not None:
            body.setdefault("model", model)
        user = _at(row, columns.user)
        return Entry(
            _at(row, columns.time),
            body,
            _text(_at(row, columns.tenant), columns.tenant),
            _text(body.get("user") if user is None else user, columns.user),
            _count(_at(row, columns.prompt_tokens), columns.prompt_tokens),
            _count(_at(row, columns.completion_tokens), columns.completion_tokens),
        )

    return read


def _at(row: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, through nested objects and objects written as JSON text; None where there is none."""
    if not path:
        return None
    if path in row:
        return row[path]
    head, _, rest = path.partition(".")
    below = row.get(head)
    if not rest or below is None:
        return None
    if isinstance(below, str):
        below = _json(below, head)
    return _at(below, rest) if isinstance(below, dict) else None


def _first(names: tuple[str, ...], *places: dict[str, Any]) -> Any:
    for place in places:
        for name in names:
            value = place.get(name)
            if value is not None:
                return value
    return None


def _usage(row: dict[str, Any]) -> tuple[int | None, int | None]:
    usage = row.get("usage")
    if usage is None and isinstance(response := row.get("response"), dict):
        answer = response.get("body", response)
        usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None, None
    return (
        _count(usage.get("prompt_tokens"), "usage.prompt_tokens"),
        _count(usage.get("completion_tokens"), "usage.completion_tokens"),
    )


def _json(value: Any, what: str) -> Any:
    """The value itself, or what its JSON text says."""
    if not isinstance(value, str | bytes):
        return value
    if not value:
        return None
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise RowError(f"{what}: not valid JSON") from None


def _object(value: Any, what: str) -> dict[str, Any]:
    found = _json(value, what)
    if not isinstance(found, dict):
        raise RowError(f"{what}: expected a JSON object")
    return found


def _text(value: Any, what: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RowError(f"{what}: expected a text")


def _count(value: Any, what: str) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise RowError(f"{what}: expected a whole number of tokens")
    return value


_LAYOUTS: Final[dict[str, Preset]] = {
    "prebake": read_prebake,
    "openai": read_openai,
    "litellm": read_litellm,
    "langfuse": read_langfuse,
}
PRESETS: Final = (*_LAYOUTS, "columns")
