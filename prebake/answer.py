"""One baked answer, and the bytes it is stored as in a serving snapshot.

The bytes are a fixed header (times, token counts), the names (few distinct values, so that parsing them is
remembered) and the assistant message as JSON, ready to be put into a response without parsing it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import Any, Final, NamedTuple

import orjson

from prebake.errors import SnapshotError

FORMAT: Final = 1

# format, unused, bytes of the names, prompt tokens, completion tokens, baked at, expires at (µs since 1970 UTC)
_HEADER: Final = Struct("<BxHIIqq")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Answer(NamedTuple):
    """An answer that may be served; a tuple because one is made for every hit. Times are UTC and aware."""

    fingerprint: bytes
    route: str
    message_json: bytes  # the assistant message as OpenAI has it: role, content, tool_calls, refusal ...
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    model: str
    run_id: str
    baked_at: datetime
    expires_at: datetime

    @property
    def message(self) -> dict[str, Any]:
        """The assistant message, parsed."""
        message: dict[str, Any] = orjson.loads(self.message_json)
        return message

    def encode(self) -> bytes:
        """The stored value. Raises SnapshotError for counts or names no answer can have."""
        names = orjson.dumps([self.finish_reason, self.model, self.run_id, self.route])
        try:
            header = _HEADER.pack(
                FORMAT,
                len(names),
                self.prompt_tokens,
                self.completion_tokens,
                (self.baked_at - _EPOCH) // _MICROSECOND,
                (self.expires_at - _EPOCH) // _MICROSECOND,
            )
        except StructError as error:
            raise SnapshotError(f"answer {self.fingerprint.hex()}: cannot be stored: {error}") from None
        return b"".join((header, names, self.message_json))

    @classmethod
    def decode(cls, fingerprint: bytes, value: bytes) -> Answer:
        """The answer that was stored. Raises SnapshotError for a damaged value or another format."""
        try:
            version, length, prompt_tokens, completion_tokens, baked_us, expires_us = _HEADER.unpack_from(value)
            start = _HEADER.size + length
            if version == FORMAT and start < len(value):
                finish_reason, model, run_id, route = _names(value[_HEADER.size : start])
                return cls(
                    fingerprint,
                    route,
                    value[start:],
                    finish_reason,
                    prompt_tokens,
                    completion_tokens,
                    model,
                    run_id,
                    _EPOCH + timedelta(microseconds=baked_us),
                    _EPOCH + timedelta(microseconds=expires_us),
                )
        except (StructError, ValueError, OverflowError):
            version = FORMAT
        raise SnapshotError(f"answer {fingerprint.hex()}: {_wrong(version)}")


@lru_cache(maxsize=4096)
def _names(names: bytes) -> tuple[str, str, str, str]:
    finish_reason, model, run_id, route = orjson.loads(names)
    return finish_reason, model, run_id, route


def _wrong(version: int) -> str:
    if version != FORMAT:
        return f"stored in format {version}, this prebake reads format {FORMAT}; upgrade prebake or publish again"
    return "its bytes are damaged; publish again or go back with `prebake rollback`"
