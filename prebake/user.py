"""Users as numbers: the salted hash that stands for a user's id everywhere in the store."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b


def hash_user(user: str, salt: bytes) -> int:
    """64 signed bits of BLAKE2b over the user's id, keyed with the salt: equal for equal ids, useless without the salt.

    ``salt`` has 1 to 64 bytes. Gateway and ingest call this same function, so that a user is one user in both logs.
    """
    return hash_users((user,), salt)[0]


def hash_users(users: Iterable[str], salt: bytes) -> list[int]:
    """:func:`hash_user` of each."""
    copy, read = _keyed(salt).copy, int.from_bytes
    found = []
    for user in users:
        hashed = copy()
        hashed.update(user.encode("utf-8", "surrogatepass"))
        found.append(read(hashed.digest(), "big", signed=True))
    return found


@lru_cache(maxsize=8)
def _keyed(salt: bytes) -> blake2b:
    return blake2b(digest_size=8, key=salt)
