"""Users as numbers: the salted hash that stands for a user's id everywhere in the store."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b


def hash_user(user: str, salt: bytes) -> int:
    """64 signed bits of BLAKE2b over the user's id, keyed with the salt: equal for equal ids, useless without the salt.

    ``salt`` has 1 to 64 bytes. Gateway and ingest call this same function, so that a user is one user in both logs.
    """
    hashed = _keyed(salt).copy()
    hashed.update(user.encode("utf-8", "surrogatepass"))
    return int.from_bytes(hashed.digest(), "big", signed=True)


@lru_cache(maxsize=8)
def _keyed(salt: bytes) -> blake2b:
    return blake2b(digest_size=8, key=salt)
