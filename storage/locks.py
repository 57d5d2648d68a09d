"""Named locks as rows of the ledger: at most one holder, freed by its end or, after a kill, by time."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from prebake.errors import BusyError, LeaseLostError, StorageError
from storage.ledger_database import LONGEST_LEASE_S, LedgerDatabase
from storage.ledger_schema import locks

_POLL_S = 1.0

logger = logging.getLogger(__name__)


class HeldLock:
    """A lock while it is held."""

    def __init__(self, database: LedgerDatabase, name: str, token: str, lease_s: float) -> None:
        self._database, self._name, self._token, self._lease_s = database, name, token, lease_s
        self._lost = threading.Event()

    def check(self) -> None:
        """Raise LeaseLostError if the lock ran out (this process was halted too long) and somebody else took it."""
        if self._lost.is_set():
            raise LeaseLostError(f"lock {self._name!r} ran out while this process stood still; somebody else has it")

    def _renew_until(self, released: threading.Event) -> None:
        while not released.wait(self._lease_s / 3):
            try:
                renewed = self._database.run(self._renew)
            except StorageError as error:
                logger.warning("lock %r could not be renewed: %s", self._name, error)
            else:
                if not renewed:
                    self._lost.set()
                    return

    def _renew(self, connection: Connection) -> bool:
        until = self._database.now(connection) + timedelta(seconds=self._lease_s)
        mine = (locks.c.name == self._name) & (locks.c.token == self._token)
        return bool(connection.execute(update(locks).where(mine).values(lease_until=until)).rowcount)


@contextmanager
def hold_lock(database: LedgerDatabase, name: str, owner: str, lease_s: float, wait_s: float) -> Iterator[HeldLock]:
    """Take the lock, renew it every third of ``lease_s``, give it back at the end of the block."""
    token = secrets.token_hex(8)
    values = {"name": name, "token": token, "owner": owner, "host": socket.gethostname()}
    _take(database, values, lease_s, wait_s)
    lock, released = HeldLock(database, name, token, lease_s), threading.Event()
    renewing = threading.Thread(target=lock._renew_until, args=(released,), name=f"lock {name}", daemon=True)
    renewing.start()
    try:
        yield lock
    finally:
        released.set()
        renewing.join()
        database.run(lambda connection: connection.execute(delete(locks).where(locks.c.token == token)))


def _take(database: LedgerDatabase, values: dict[str, Any], lease_s: float, wait_s: float) -> None:
    give_up = time.monotonic() + wait_s
    while True:
        holder = database.run(lambda connection: _try_to_take(database, connection, values, lease_s))
        if holder is None:
            return
        rest_s = give_up - time.monotonic()
        if rest_s <= 0:
            raise BusyError(
                f"lock {values['name']!r} is held by {holder.owner} on {holder.host} since "
                f"{holder.since:%Y-%m-%d %H:%M:%S} UTC; wait for it, or stop that process"
            )
        time.sleep(min(rest_s, _POLL_S))


def _try_to_take(database: LedgerDatabase, connection: Connection, values: dict[str, Any], lease_s: float) -> Any:
    """None if the lock is ours now, else the row of its holder."""
    now = database.now(connection)
    row = values | {"since": now, "lease_until": now + timedelta(seconds=lease_s)}
    dialect = sqlite if database.is_sqlite else postgresql
    taken = (
        dialect.insert(locks)
        .values(row)
        .on_conflict_do_update(
            index_elements=["name"],
            set_=row,
            # The last alternative: this very call, tried again after its commit's answer was lost.
            where=(locks.c.lease_until < now)
            | (locks.c.lease_until > now + timedelta(seconds=LONGEST_LEASE_S))
            | (locks.c.token == values["token"]),
        )
        .returning(locks.c.name)  # psycopg's row count of an INSERT is -1
    )
    while connection.execute(taken).first() is None:
        holder = connection.execute(select(locks).where(locks.c.name == values["name"])).one_or_none()
        if holder is not None:  # else it was freed between the two statements
            return holder
    return None
