"""The ledger: which runs there were, which shards are done, who works on which, and which parts count.

In: plans cut into shards, workers that take them by lease. Out: the truth about work that survives any kill. A lease
expires unless its heartbeat renews it; each taking of a shard raises its fence, and only who holds the newest fence
may add parts. All times are measured by one clock (``storage/ledger_database.py`` says which).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Table, and_, case, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL

from prebake.errors import ConflictError, Interrupted, LeaseLostError, PrebakeError
from storage import ledger_schema as schema
from storage.ledger_database import LONGEST_LEASE_S, PATIENCE_S, LedgerDatabase
from storage.locks import HeldLock, hold_lock
from storage.workers import Workers

RunStatus = Literal["running", "completed", "stopped", "failed"]


@dataclass(frozen=True)
class Run:
    """One run of a flow or step; ``summary`` has what it said at its end, ``error`` among it where it failed."""

    run_id: str
    kind: str
    day: date | None
    params: dict[str, Any]
    status: RunStatus
    started_at: datetime
    finished_at: datetime | None
    summary: dict[str, Any]


@dataclass(frozen=True)
class Lease:
    """The right to work on one shard until ``lease_until`` (UTC, by the ledger's clock).

    ``attempt`` counts from 1 and grows only when a lease ran out; a release is no failure.
    """

    plan_id: str
    shard_id: int
    owner: str
    fence: int
    attempt: int
    lease_s: float
    lease_until: datetime


@dataclass(frozen=True)
class Part:
    """A finished Parquet file of answers: its object key, rows, size in bytes and SHA-256 as hexadecimal."""

    key: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Progress:
    """How far a plan is: shards by state, answers planned in all and in finished shards, rows in parts."""

    shards: int
    pending: int
    leased: int
    done: int
    answers: int
    answers_done: int
    rows: int


class Ledger:
    """One ledger; threads and processes may share its database."""

    def __init__(self, database: LedgerDatabase) -> None:
        self._database = database
        self.place = database.place
        self.workers = Workers(database)

    def start_run(self, kind: str, day: date | None, params: Mapping[str, Any]) -> str:
        """Note that a run begins; returns its id, which sorts by time. ``params`` must be JSON values."""
        run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(3)}"

        def work(connection: Connection) -> None:
            values = {"run_id": run_id, "kind": kind, "day": day, "params": dict(params), "status": "running"}
            row = values | {"started_at": self._database.now(connection)}
            connection.execute(_insert_new(connection, schema.runs).values(row))

        self._database.run(work)
        return run_id

    def finish_run(self, run_id: str, status: RunStatus, summary: Mapping[str, Any]) -> None:
        """Note how a run ended. ``summary`` must be JSON values."""

        def work(connection: Connection) -> None:
            values = {"status": status, "summary": dict(summary), "finished_at": self._database.now(connection)}
            connection.execute(update(schema.runs).where(schema.runs.c.run_id == run_id).values(values))

        self._database.run(work)

    @contextmanager
    def running(
        self, kind: str, day: date | None, params: Mapping[str, Any], summary: Mapping[str, Any] | None = None
    ) -> Iterator[str]:
        """A run that lasts as long as the block, which is given its id.

        It is completed with ``summary`` as that is at the end; where the block raises, it was stopped or has failed,
        with the error.
        """
        run_id = self.start_run(kind, day, params)
        try:
            yield run_id
        except PrebakeError as error:
            self.finish_run(run_id, "stopped" if isinstance(error, Interrupted) else "failed", {"error": str(error)})
            raise
        except BaseException as error:
            self.finish_run(run_id, "failed", {"error": f"{type(error).__name__}: {error}"})
            raise
        self.finish_run(run_id, "completed", summary or {})

    def runs(self) -> list[Run]:
        """All runs, newest first."""
        query = select(schema.runs).order_by(schema.runs.c.run_id.desc())
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [Run(**{**row, "summary": row["summary"] or {}}) for row in rows]

    def lock(self, name: str, owner: str, lease_s: float, wait_s: float) -> AbstractContextManager[HeldLock]:
        """Hold a named lock for as long as the block lasts, renewed from a thread of its own.

        A holder that was killed frees it after ``lease_s``. Raises BusyError, naming the holder, if it is still held
        after ``wait_s`` seconds.
        """
        return hold_lock(self._database, name, owner, lease_s, wait_s)

    def add_shards(self, plan_id: str, shards: Mapping[int, int]) -> None:
        """Note a plan's shards and the answers in each; those that are there already stay as they are."""
        rows = [
            {
                "plan_id": plan_id,
                "shard_id": shard_id,
                "answers": answers,
                "status": "pending",
                "fence": 0,
                "expired": 0,
            }
            for shard_id, answers in shards.items()
        ]
        if rows:
            self._database.run(lambda connection: connection.execute(_insert_new(connection, schema.shards), rows))

    def progress(self, plan_id: str) -> Progress:
        """How far the plan is; a lease that ran out counts as pending."""

        def work(connection: Connection) -> Progress:
            shards = schema.shards.c
            free, done = _free(self._database.now(connection)), shards.status == "done"
            counts = connection.execute(
                select(
                    func.count(),
                    _sum(case((free, 1), else_=0)),
                    _sum(case((done, 1), else_=0)),
                    _sum(shards.answers),
                    _sum(case((done, shards.answers), else_=0)),
                ).where(shards.plan_id == plan_id)
            ).one()
            rows = connection.execute(select(_sum(schema.parts.c.rows)).where(schema.parts.c.plan_id == plan_id))
            total, pending, finished, answers, answers_done = (int(count) for count in counts)
            leased = total - pending - finished
            return Progress(total, pending, leased, finished, answers, answers_done, int(rows.scalar_one()))

        return self._database.read(work)

    def take_shard(self, plan_id: str, owner: str, lease_s: float) -> Lease | None:
        """Lease the next shard: one that nobody has, else one whose lease ran out; None if there is neither.

        ``lease_s`` above LONGEST_LEASE_S is cut to it.
        """
        lease_s = min(lease_s, LONGEST_LEASE_S)

        def work(connection: Connection) -> Lease | None:
            now = self._database.now(connection)
            shards = schema.shards.c
            row = connection.execute(
                select(shards.shard_id, shards.status, shards.fence, shards.expired)
                .where(shards.plan_id == plan_id, _free(now))
                .order_by(case((shards.status == "pending", 0), else_=1), shards.shard_id)
                .limit(1)
                .with_for_update(skip_locked=True)  # SQLite, which has one writer at a time, leaves it out
            ).one_or_none()
            if row is None:
                return None
            expired = row.expired + (row.status == "leased")
            lease = Lease(
                plan_id, row.shard_id, owner, row.fence + 1, expired + 1, lease_s, now + timedelta(seconds=lease_s)
            )
            connection.execute(
                update(schema.shards)
                .where(_is(lease))
                .values(status="leased", owner=owner, fence=lease.fence, expired=expired, lease_until=lease.lease_until)
            )
            return lease

        return self._database.run(work)

    def heartbeat(self, lease: Lease) -> Lease:
        """The lease, renewed for another ``lease_s`` from now. Raises LeaseLostError if the shard was taken over."""

        def work(connection: Connection) -> Lease:
            until = self._database.now(connection) + timedelta(seconds=lease.lease_s)
            held = connection.execute(update(schema.shards).where(_held(lease)).values(lease_until=until))
            if not held.rowcount:
                raise _lost(lease)
            return replace(lease, lease_until=until)

        return self._database.run(work)

    def release(self, lease: Lease) -> None:
        """Give the shard back for anyone to take at once; nothing happens if it was taken over or is done."""
        values = {"status": "pending", "owner": None, "lease_until": None}
        self._database.run(
            lambda connection: connection.execute(update(schema.shards).where(_held(lease)).values(values))
        )

    def add_part(self, lease: Lease, part: Part) -> None:
        """Make the part count, in one transaction with the look at the lease; adding it again does nothing.

        Raises LeaseLostError if the shard was taken over or is done, ConflictError if another part has that key.
        """

        def work(connection: Connection) -> None:
            with _holding(connection, lease):
                values = {"plan_id": lease.plan_id, "shard_id": lease.shard_id, "fence": lease.fence, **vars(part)}
                row = values | {"added_at": self._database.now(connection)}
                # What comes back counts, not the row count: psycopg's is -1 for an INSERT.
                added = _insert_new(connection, schema.parts).values(row).returning(schema.parts.c.key)
                if connection.execute(added).first() is None:
                    _check_same(connection, lease, part)

        self._database.run(work)

    def finish_shard(self, lease: Lease) -> None:
        """Note that all of the shard's answers are in parts; doing it again does nothing.

        Raises LeaseLostError if the shard was taken over.
        """

        def work(connection: Connection) -> None:
            values = {"status": "done", "lease_until": None, "finished_at": self._database.now(connection)}
            finished = connection.execute(
                update(schema.shards)
                .where(_is(lease), schema.shards.c.fence == lease.fence, schema.shards.c.status != "pending")
                .values(values)
            )
            if not finished.rowcount:
                raise _lost(lease)

        self._database.run(work)

    def parts(self, plan_id: str, shard_id: int | None = None) -> list[Part]:
        """The parts that count, of the plan or of one shard, in the order of their keys."""
        parts = schema.parts.c
        query = select(parts.key, parts.rows, parts.bytes, parts.sha256).where(parts.plan_id == plan_id)
        if shard_id is not None:
            query = query.where(parts.shard_id == shard_id)
        rows = self._database.read(lambda connection: connection.execute(query.order_by(parts.key)).all())
        return [Part(*row) for row in rows]

    def close(self) -> None:
        """Give back all connections."""
        self._database.close()


def open_ledger(url: str | URL, *, patience_s: float = PATIENCE_S) -> Ledger:
    """The ledger at that SQLAlchemy URL, its tables made or upgraded.

    ``patience_s``: how long each call waits while the database is away. Raises SettingsError for a URL that is none,
    StorageError if the database cannot be used.
    """
    database = LedgerDatabase(url, patience_s=patience_s)
    database.migrate()
    return Ledger(database)


def _insert_new(connection: Connection, table: Table) -> Any:
    """An INSERT that leaves rows alone whose keys are there already."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    return dialect.insert(table).on_conflict_do_nothing()


def _sum(column: Any) -> Any:
    return func.coalesce(func.sum(column), 0)


def _free(now: datetime) -> ColumnElement[bool]:
    shards = schema.shards.c
    over = or_(shards.lease_until < now, shards.lease_until > now + timedelta(seconds=LONGEST_LEASE_S))
    return or_(shards.status == "pending", and_(shards.status == "leased", over))


def _is(lease: Lease) -> ColumnElement[bool]:
    shards = schema.shards.c
    return and_(shards.plan_id == lease.plan_id, shards.shard_id == lease.shard_id)


def _held(lease: Lease) -> ColumnElement[bool]:
    # An expired lease that nobody took over is still good: what it commits is nobody else's work.
    shards = schema.shards.c
    return and_(_is(lease), shards.fence == lease.fence, shards.status == "leased")


@contextmanager
def _holding(connection: Connection, lease: Lease) -> Iterator[None]:
    """Keep others from taking the shard over until the transaction ends."""
    if connection.execute(select(schema.shards.c.fence).where(_held(lease)).with_for_update()).one_or_none() is None:
        raise _lost(lease)
    yield


def _lost(lease: Lease) -> LeaseLostError:
    return LeaseLostError(
        f"plan {lease.plan_id}, shard {lease.shard_id}: the lease of {lease.owner} ran out and another worker took "
        "the shard over; what was not committed yet is baked by that worker"
    )


def _check_same(connection: Connection, lease: Lease, part: Part) -> None:
    parts = schema.parts.c
    found = connection.execute(select(parts.plan_id, parts.shard_id, parts.sha256).where(parts.key == part.key)).one()
    if found != (lease.plan_id, lease.shard_id, part.sha256):
        raise ConflictError(f"part {part.key}: another part with that key counts already; give each part its own key")
