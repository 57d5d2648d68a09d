"""People stay out of the store: a user's id goes in, a salted number that cannot be turned back comes out.

The gateway's log and ingest call this same function, so one person counts once wherever the log came from.
"""

from __future__ import annotations

from hashlib import blake2b


def hash_user(salt: bytes, user: str) -> int:
    """Keyed BLAKE2b (RFC 7693) of the user's id as a signed 64-bit number.

    ``salt`` is the store's secret; what lies beyond its first 64 bytes is not used (BLAKE2b's longest key).
    """
    digest = blake2b(user.encode("utf-8", "surrogatepass"), digest_size=8, key=salt[:64]).digest()
    return int.from_bytes(digest, "big", signed=True)
