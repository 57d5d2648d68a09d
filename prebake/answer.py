"""One baked answer, as a lookup gives it.

In: its parts. Out: what a response needs, the message as JSON ready for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Self

import orjson

_new: Final = tuple.__new__
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Names(NamedTuple):
    """What few answers differ in."""

    finish_reason: str
    model: str
    run_id: str
    route: str


class _Fields(NamedTuple):
    fingerprint: bytes
    message_json: bytes
    names: Names
    prompt_tokens: int
    completion_tokens: int
    baked_us: int
    expires_us: int


class Answer(_Fields):
    """An answer that may be served. Immutable; a tuple with times as integers because each hit makes one.

    ``message_json`` is the assistant message as OpenAI has it: role, content, tool_calls, refusal and so on.
    """

    __slots__ = ()

    def __new__(
        cls,
        fingerprint: bytes,
        route: str,
        message_json: bytes,
        *,
        finish_reason: str,
        prompt_tokens: int,
        completion_tokens: int,
        model: str,
        run_id: str,
        baked_at: datetime,
        expires_at: datetime,
    ) -> Self:
        """Times must be aware; they are kept in UTC."""
        names = Names(finish_reason, model, run_id, route)
        baked_us, expires_us = microseconds(baked_at), microseconds(expires_at)
        fields = (fingerprint, message_json, names, prompt_tokens, completion_tokens, baked_us, expires_us)
        return _new(cls, fields)

    @property
    def message(self) -> dict[str, Any]:
        """The assistant message, parsed."""
        message: dict[str, Any] = orjson.loads(self.message_json)
        return message

    @property
    def finish_reason(self) -> str:
        """As OpenAI names it: stop, length, tool_calls."""
        return self.names.finish_reason

    @property
    def model(self) -> str:
        """The model that answered."""
        return self.names.model

    @property
    def run_id(self) -> str:
        """The run that baked it."""
        return self.names.run_id

    @property
    def route(self) -> str:
        """The route it was baked for."""
        return self.names.route

    @property
    def baked_at(self) -> datetime:
        """When it was finished, UTC."""
        return _EPOCH + timedelta(microseconds=self.baked_us)

    @property
    def expires_at(self) -> datetime:
        """Until when it is good, UTC."""
        return _EPOCH + timedelta(microseconds=self.expires_us)


def microseconds(time: datetime) -> int:
    """Since 1970, UTC; ``time`` must be aware."""
    return (time - _EPOCH) // _MICROSECOND


def says_something(message: Mapping[str, Any]) -> bool:
    """Whether an assistant message is an answer: it has a text or a refusal, or calls a tool."""
    texts = (message.get("content"), message.get("refusal"))
    if any(text.strip() if isinstance(text, str) else text for text in texts):
        return True
    return bool(message.get("tool_calls") or message.get("function_call"))
