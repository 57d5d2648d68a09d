"""What people have decided about answers: requests that are blocked, answers that are approved.

In: one small JSON object of the store. Out: whether an answer may be served, and if not, why.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from prebake.answer import Answer
from prebake.errors import StorageError
from prebake.routes import Route

FORMAT: Final = 1

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Withheld(StrEnum):
    """Why an answer that is there is not given."""

    BLOCKED = "blocked"  # a person has blocked the request
    UNAPPROVED = "unapproved"  # its route serves only what a person has approved, and nobody has approved this


class Block(BaseModel):
    """A request that is not answered from the store."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: AwareDatetime
    note: str = ""


class Approval(BaseModel):
    """A person has read this answer to the request; ``answer`` is its :func:`answer_digest`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    answer: Hex
    at: AwareDatetime
    note: str = ""


class Verdicts(BaseModel):
    """All verdicts, by fingerprint as 32 hexadecimal digits. Immutable, as it is read while others change it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int = FORMAT
    blocked: Mapping[Hex, Block] = {}
    approved: Mapping[Hex, Approval] = {}

    @cached_property
    def blocked_keys(self) -> frozenset[bytes]:
        """The fingerprints that are blocked."""
        return frozenset(map(bytes.fromhex, self.blocked))

    def withhold(self, route: Route, fingerprint: bytes, answer: Answer | None) -> Withheld | None:
        """Why what the store has for this request (None: nothing) must not be given on this route; None: it may."""
        if fingerprint in self.blocked_keys:
            return Withheld.BLOCKED
        if route.approval and answer is not None:
            approval = self.approved.get(fingerprint.hex())
            if approval is None or approval.answer != answer_digest(answer):
                return Withheld.UNAPPROVED
        return None


NO_VERDICTS: Final = Verdicts()


class _Versioned(BaseModel):
    format: int


def parse_verdicts(data: bytes, place: str) -> Verdicts:
    """Parse what was read at ``place``. Raises StorageError if damaged or of another format."""
    try:
        # The format first: another format may have other fields.
        found = _Versioned.model_validate_json(data).format
        if found == FORMAT:
            return Verdicts.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "JSON"
        raise StorageError(f"{place}: damaged ({where}: {problem['msg']}); put it back from your backup") from None
    raise StorageError(f"{place}: in format {found}, this prebake reads format {FORMAT}; upgrade prebake")


def answer_digest(answer: Answer) -> str:
    """What an approval stands for: the first 128 bits of SHA-256 over the message as it is stored, hexadecimal."""
    return sha256(answer.message_json).hexdigest()[:32]
