"""The secret that user ids are hashed with. In: settings and the object store. Out: the salt, the same for ever."""

from __future__ import annotations

import contextlib
import secrets
from hashlib import sha512

from prebake.errors import ConflictError, SettingsError
from prebake.settings import Privacy
from storage.objects import Objects

SALT_KEY = "user-salt"


def user_salt(privacy: Privacy, objects: Objects) -> bytes:
    """The salt for ``prebake.user.hash_user``, 64 bytes: from the settings, else one kept in a local store.

    A local store gets a random one at the first call; of two processes that call at once both return the same. Raises
    SettingsError for a store that is not local, where the secret would lie beside what it protects.
    """
    if privacy.user_salt is not None:
        # As long as the key of BLAKE2b may be, whatever the length of the secret.
        return sha512(privacy.user_salt.get_secret_value().encode()).digest()
    if objects.local_path(SALT_KEY) is None:
        raise SettingsError(
            f"privacy.user_salt: not set, and {objects.uri} is no local store to keep one in; "
            "set PREBAKE_PRIVACY__USER_SALT to a long random text, the same on every machine"
        )
    if objects.stat(SALT_KEY) is None:
        with contextlib.suppress(ConflictError):  # another process was first: its salt is the salt
            objects.create(SALT_KEY, secrets.token_bytes(64))
    return objects.read(SALT_KEY)
