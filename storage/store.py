"""Everything that stays, opened together: objects, ledger, tables and the salt that people are hashed with."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy.engine import URL

from prebake.errors import ConflictError, SettingsError, StorageError
from prebake.settings import Settings
from prebake.tables import ANSWERS, DAILY_COUNTS, PLAN, QUERY_LOG, REJECTS
from storage.delta import DeltaTable
from storage.ledger import Ledger, open_ledger
from storage.objects import TABLES, Objects, open_objects
from storage.objects_local import LocalObjects

LEDGER = "ledger.db"
SALT = "user-salt"
_HASHED = (f"{TABLES}/{QUERY_LOG.name}/", "gateway-log/")


@dataclass(frozen=True)
class Store:
    """All that stays. ``salt`` is what user ids are hashed with."""

    objects: Objects
    ledger: Ledger
    query_log: DeltaTable
    rejects: DeltaTable
    daily_counts: DeltaTable
    plan: DeltaTable
    answers: DeltaTable
    salt: bytes


@contextmanager
def open_store(settings: Settings) -> Iterator[Store]:
    """The store the settings name, made if it is not there.

    Raises SettingsError if an S3 store lacks its ledger or salt, StorageError if disk, S3 or database refuse.
    """
    objects = open_objects(settings.store)
    salt = user_salt(settings, objects)
    with closing(open_ledger(ledger_url(settings, objects))) as ledger:
        yield Store(
            objects,
            ledger,
            query_log=DeltaTable(QUERY_LOG, objects),
            rejects=DeltaTable(REJECTS, objects),
            daily_counts=DeltaTable(DAILY_COUNTS, objects),
            plan=DeltaTable(PLAN, objects),
            answers=DeltaTable(ANSWERS, objects),
            salt=salt,
        )


def ledger_url(settings: Settings, objects: Objects) -> str | URL:
    """The ledger's SQLAlchemy URL: as set, else SQLite in the store's folder."""
    if settings.store.ledger_url:
        return settings.store.ledger_url
    file = objects.local_path(LEDGER)
    if file is None:
        raise SettingsError(
            f"store.ledger_url: a store in S3 ({objects.uri}) needs one; set it to "
            "postgresql+psycopg://user:password@host/database"
        )
    return URL.create("sqlite", database=str(file))


def user_salt(settings: Settings, objects: Objects) -> bytes:
    """The secret that user ids are hashed with: as set, else the store's own, made at its first use."""
    if settings.privacy.user_salt is not None:
        return settings.privacy.user_salt.get_secret_value().encode()
    if not isinstance(objects, LocalObjects):
        raise SettingsError(
            f"privacy.user_salt: a store in S3 ({objects.uri}) needs one; set PREBAKE_PRIVACY__USER_SALT to a long "
            "random secret, the same for every machine"
        )
    if objects.stat(SALT) is None:
        _make_salt(objects)
    return objects.read(SALT)


def _make_salt(objects: LocalObjects) -> None:
    # A second salt would make two users of one, and let a prompt of one person pass the threshold of two.
    if any(True for written in _HASHED for _ in objects.list(written)):
        raise StorageError(
            f"{objects.local_path(SALT)}: gone, but the store has user ids hashed with it; put it back from your "
            "backup, set PREBAKE_PRIVACY__USER_SALT to what it was, or begin a new store"
        )
    with suppress(ConflictError):  # another process made it first; its salt is the one
        objects.create(SALT, secrets.token_bytes(32), mode=0o600)
