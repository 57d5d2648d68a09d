"""API keys of the gateway: random, shown once, kept as digests. In: a key as a client sends it. Out: whose it is.

A key is 256 random bits, so that one SHA-256 hides it: there is nothing to guess that a slow hash would have to guard.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from hashlib import sha256

from pydantic import BaseModel, ConfigDict, Field

PREFIX = "pbk-"


class Key(BaseModel):
    """One key of the gateway, and whose it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="The key's name: small letters, digits, - and _.")
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key in hexadecimal, as `prebake key` prints it."
    )
    tenant: str = Field(
        default="", max_length=256, description="Tenant of all requests with this key; empty: none, shared routes only."
    )
    requests_per_minute: int = Field(
        default=0, ge=0, description="More requests than this in a minute are refused (429), hits too; 0: no limit."
    )
    admin: bool = Field(default=False, description="The key opens the gateway's own page, to look and to block.")


class Keyring:
    """The keys in force, found by what a client presents."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = {(digest := bytes.fromhex(key.sha256)): (digest, key) for key in keys}

    def __len__(self) -> int:
        """How many keys there are; with none, the doors are open."""
        return len(self._keys)

    def find(self, presented: bytes) -> Key | None:
        """The key that was presented, or None.

        The dictionary compares digests, which tell nothing of the key; the last word has a comparison in constant time.
        """
        digest = sha256(presented).digest()
        found = self._keys.get(digest)
        return found[1] if found is not None and hmac.compare_digest(found[0], digest) else None


def new_key() -> tuple[str, str]:
    """A new random key, and its SHA-256 in hexadecimal."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, sha256(key.encode()).hexdigest()
