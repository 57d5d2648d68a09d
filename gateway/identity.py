"""Who asks: the tenant that scopes the answer, and the user that the night counts. In: headers and body; out: names.

The tenant comes from the key, or from a header that a trusted proxy sets, never from the body: what a client can write
must not choose whose answers it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prebake.keys import Key
from prebake.settings import Gateway

Headers = Iterable[tuple[bytes, bytes]]
KEY = "prebake.key"  # where a request's scope keeps the key that opened the door


class Identity:
    """Reads tenant and user as the settings say."""

    def __init__(self, settings: Gateway) -> None:
        self._tenant_header = settings.tenant_header.lower().encode("latin-1")
        self._user_header = settings.user_header.lower().encode("latin-1")

    def tenant(self, headers: Headers, key: Key | None = None) -> str | None:
        """The tenant, or None where nobody trustworthy said one. A header given twice is not trustworthy."""
        if key is not None:
            return key.tenant or None
        return _only(headers, self._tenant_header) if self._tenant_header else None

    def user(self, headers: Headers, body: Mapping[str, Any]) -> str | None:
        """The user's id as it came, for hashing; None where the request names none."""
        if self._user_header:
            return _only(headers, self._user_header)
        user = body.get("user") or body.get("safety_identifier")
        return user if isinstance(user, str) else None


def _only(headers: Headers, name: bytes) -> str | None:
    values = [value for header, value in headers if header == name]
    if len(values) != 1 or not values[0]:
        return None
    try:
        return values[0].decode()
    except UnicodeDecodeError:
        return None
