"""Who may see the page, and whose clicks count. In: a request's headers. Out: whether it comes in.

HTTP Basic with the admin key as the password (RFC 7617): nothing to sign, to store or to expire, and the same for all
processes and machines. What changes something must come from the page itself (OWASP, "CSRF Prevention").
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from prebake.keys import Key, Keyring

CHALLENGE = {"www-authenticate": 'Basic realm="prebake: any name, your admin key as the password", charset="UTF-8"'}


class Access:
    """Knows the admin keys in force."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keyring = Keyring(key for key in keys if key.admin)

    def admits(self, headers: Headers) -> bool:
        """Whether the request presents an admin key, as the password of HTTP Basic."""
        presented = headers.getlist("authorization")
        return len(presented) == 1 and self._keyring.find(_password(presented[0])) is not None


def is_own_click(headers: Headers) -> bool:
    """Whether a request that changes something comes from the page itself, or from no browser at all."""
    if site := headers.get("sec-fetch-site"):
        return site == "same-origin"
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def _password(authorization: str) -> bytes:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
