"""The ledger's database, SQLite or PostgreSQL: opened, migrated, and asked in short transactions.

In: an SQLAlchemy URL. Out: transactions that are tried again while the database is away, failures as sentences, and
one clock for all leases: the PostgreSQL server's, because machines differ; for SQLite this machine's, which is the
only one there.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from prebake.errors import SettingsError, StorageError
from storage.ledger_schema import REVISION, VERSION_TABLE

T = TypeVar("T")

PATIENCE_S: Final = 60.0
"""How long a database that is away or locked is waited for, in seconds."""

LONGEST_LEASE_S: Final = 3600.0
"""No lease is longer: one that seems to be was given before the clock was set back, and is as good as run out."""

_LONGEST_PAUSE_S: Final = 5.0
_MIGRATION_LOCK: Final = 0x707265_62616B65  # "prebake": an arbitrary number for PostgreSQL's advisory lock

# A server whose machine vanished answers nothing, not even that it is gone: give such a connection up by time.
_POSTGRES: Final = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # ms
}

logger = logging.getLogger(__name__)


class LedgerDatabase:
    """Connections to one ledger; SQLite's writers queue, PostgreSQL's lock rows."""

    def __init__(self, url: str | URL, *, patience_s: float = PATIENCE_S) -> None:
        self._url = _parse(url)
        self.place = self._url.render_as_string(hide_password=True)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._patience_s = patience_s

    @cached_property
    def _engine(self) -> Engine:
        if self.is_sqlite:
            engine = create_engine(self._url, connect_args={"timeout": self._patience_s, "check_same_thread": False})
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        return create_engine(self._url, pool_pre_ping=True, pool_recycle=1800, connect_args=_POSTGRES)

    def migrate(self) -> None:
        """Make or upgrade the tables; several processes may call it at once. StorageError if a newer prebake did."""
        if self.is_sqlite and self._url.database:
            _make_folder(Path(self._url.database).parent)
        self.run(_migrate)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Do the work in one writing transaction; it may be done again if the database goes away: make it repeatable.

        Raises StorageError when the database stays away for longer than the patience, or refuses.
        """
        return self._run(work, reading=False)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Do the work in one reading transaction, which blocks no writer."""
        return self._run(work, reading=True)

    def now(self, connection: Connection) -> datetime:
        """The time that all leases are measured by, UTC."""
        if self.is_sqlite:
            return datetime.now(UTC)
        now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return now.astimezone(UTC)

    def close(self) -> None:
        """Give back all connections."""
        if "_engine" in self.__dict__:
            self._engine.dispose()

    def _run(self, work: Callable[[Connection], T], *, reading: bool) -> T:
        give_up = time.monotonic() + self._patience_s
        pause_s = 0.05
        while True:
            try:
                with self._engine.execution_options(prebake_reading=reading).begin() as connection:
                    return work(connection)
            except DBAPIError as error:
                reason = str(error.orig or error).strip().split("\n", 1)[0]
                if not _may_pass(error) or time.monotonic() + pause_s > give_up:
                    raise StorageError(f"ledger {self.place}: {reason}{_remedy(error)}") from error
                logger.warning("ledger %s: %s; trying again in %.1f s", self.place, reason, pause_s)
            time.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def _parse(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise SettingsError(f"store.ledger_url: not an SQLAlchemy URL: {error}") from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise SettingsError(
            f"store.ledger_url: {parsed.drivername!r} is not supported; "
            "expected sqlite:///file or postgresql+psycopg://user:password@host/database"
        )
    # Plain postgresql:// means psycopg 2 to SQLAlchemy, which is not installed.
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: the ledger's folder cannot be made: {error.strerror}") from error


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin event opens transactions, not the driver
    connection.execute("PRAGMA journal_mode = WAL")
    # A part counts once its row is there: the row must survive a power cut, not only a kill.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: a reader that turns writer cannot wait, it fails.
    reading = connection.get_execution_options().get("prebake_reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _may_pass(error: DBAPIError) -> bool:
    """Whether waiting can help: the server is away, starting, full, or the row or file is locked."""
    original: Any = error.orig
    if isinstance(original, sqlite3.Error):
        return getattr(original, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    state = getattr(original, "sqlstate", None)
    if state is None:  # no answer from a server at all
        return error.connection_invalidated or type(original).__name__ in ("OperationalError", "ConnectionTimeout")
    # Classes: connection exception, transaction rollback (deadlock, serialization), insufficient resources,
    # operator intervention (shutdown, starting up).
    return state[:2] in ("08", "40", "53", "57")


def _remedy(error: DBAPIError) -> str:
    name = getattr(error.orig, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        return "; free space on that disk"
    if name in ("SQLITE_CANTOPEN", "SQLITE_READONLY"):
        return "; let this user write there or set store.ledger_url"
    return "; check store.ledger_url and that the server runs" if not name and _may_pass(error) else ""


def _migrate(connection: Connection) -> None:
    if _revision(connection) == REVISION:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATION_LOCK})
        if _revision(connection) == REVISION:
            return
    from alembic import command  # 0.2 s to import: only the first open of a ledger needs it
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "storage:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, REVISION)
    except CommandError as error:
        raise StorageError(f"ledger: written by a newer prebake; upgrade this one: {error}") from error


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    return revision
