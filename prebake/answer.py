"""One baked answer, and the bytes it is stored as in a serving snapshot.

The bytes are a fixed header (token counts, times), the names (few distinct values, so that parsing them is
remembered) and the assistant message as JSON, ready to be put into a response without parsing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import Any, Final, NamedTuple, Self

import orjson

from prebake.errors import SnapshotError

FORMAT: Final = 1

# format, unused, bytes of the names, prompt tokens, completion tokens, baked at, expires at (µs since 1970 UTC)
_HEADER: Final = Struct("<BxHIIqq")
_HEADER_BYTES: Final = _HEADER.size
_unpack_header: Final = _HEADER.unpack_from
_new: Final = tuple.__new__
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class _Names(NamedTuple):
    finish_reason: str
    model: str
    run_id: str
    route: str


class _Fields(NamedTuple):
    fingerprint: bytes
    message_json: bytes
    names: _Names
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
        names = _Names(finish_reason, model, run_id, route)
        baked_us, expires_us = ((time - _EPOCH) // _MICROSECOND for time in (baked_at, expires_at))
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

    def encode(self) -> bytes:
        """The stored value. Raises SnapshotError for counts or names that no answer can have."""
        if not self.run_id.isprintable():  # it stands in a response header
            raise SnapshotError(f"answer {self.fingerprint.hex()}: the run's name {self.run_id!r} is not printable")
        names = orjson.dumps(tuple(self.names))
        try:
            header = _HEADER.pack(FORMAT, len(names), *self[3:])
        except StructError as error:
            raise SnapshotError(f"answer {self.fingerprint.hex()}: cannot be stored: {error}") from None
        return b"".join((header, names, self.message_json))

    @classmethod
    def decode(cls, fingerprint: bytes, value: bytes) -> Self:
        """The answer that was stored. Raises SnapshotError for a damaged value or another format."""
        try:
            version, length, prompt_tokens, completion_tokens, baked_us, expires_us = _unpack_header(value)
            message_start = _HEADER_BYTES + length
            if version == FORMAT and message_start < len(value):
                names = _names(value[_HEADER_BYTES:message_start])
                message = value[message_start:]
                fields = (fingerprint, message, names, prompt_tokens, completion_tokens, baked_us, expires_us)
                return _new(cls, fields)
        except (StructError, TypeError, ValueError):
            version = FORMAT
        raise SnapshotError(f"answer {fingerprint.hex()}: {_what_is_wrong(version)}")


@lru_cache(maxsize=4096)
def _names(names: bytes) -> _Names:
    return _Names(*orjson.loads(names))


def _what_is_wrong(version: int) -> str:
    if version != FORMAT:
        return f"stored in format {version}, this prebake reads format {FORMAT}; upgrade prebake or publish again"
    return "its bytes are damaged; publish again or go back with `prebake rollback`"


def says_something(message: Mapping[str, Any]) -> bool:
    """Whether an assistant message is an answer: it has a text or a refusal, or calls a tool."""
    texts = (message.get("content"), message.get("refusal"))
    if any(text.strip() if isinstance(text, str) else text for text in texts):
        return True
    return bool(message.get("tool_calls") or message.get("function_call"))
