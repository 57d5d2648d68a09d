"""Keeps answers safe while the engine runs on: leases held by a heartbeat, answers written as parts beside it.

In: answers, one by one, and partial answers at a stop. Out: Parquet objects, and rows in the ledger that make them
count. A shard whose lease was taken over is dropped: its new holder bakes what was not committed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from io import BytesIO
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from engine import Partial
from prebake.errors import LeaseLostError, PrebakeError, StorageError
from prebake.settings import Engine as EngineSettings
from prebake.stop import Stop
from prebake.tables import ANSWERS
from storage.ledger import Lease, Part
from storage.store import Store

T = TypeVar("T")

logger = logging.getLogger(__name__)

PARTS: Final = "parts"
PARTIALS: Final = "partials"
# How long a store or ledger that is away is waited for, while the engine goes on as far as memory allows.
_BACK_OFF_S: Final = (0.5, 1, 2, 4, 8, 16, 30)
# While stopping, waits are no longer than this: the machine may be gone in half a minute.
_LAST_WAIT_S: Final = 4
_HELD_FLUSHES: Final = 4
_PARTIAL_SCHEMA: Final = pa.schema(
    [
        pa.field("fingerprint", pa.binary()),
        pa.field("model", pa.string()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("logprob_sum", pa.float64()),
    ]
)


@dataclass
class Shard:
    """A shard this worker holds; ``left`` answers are not committed yet, None while that is not known."""

    lease: Lease
    left: int | None = None
    lost: bool = False
    parts: int = 0
    partials: dict[bytes, Partial] = field(default_factory=dict)

    @property
    def part_key(self) -> str:
        """Key of its next part: differs for every taking of the shard and every part of it."""
        return f"{PARTS}/{self.lease.plan_id}/{self.lease.shard_id:05d}/{self.lease.fence:05d}-{self.parts:05d}.parquet"


class PartWriter:
    """Writes answers from a thread of its own, and renews the leases from another. One thread puts."""

    def __init__(self, store: Store, settings: EngineSettings, plan_id: str, owner: str, stop: Stop) -> None:
        self._store, self._settings, self._stop = store, settings, stop
        self._plan_id, self._owner = plan_id, owner
        self._shards: dict[int, Shard] = {}
        self._rows: list[tuple[Shard, dict[str, Any]]] = []
        self._oldest_s = 0.0
        self._partials_due = False
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._error: BaseException | None = None
        self.finished = 0
        # For whoever watches: rows put, dropped with their shard, and in parts that count; the rest explains itself.
        self.taken = self.dropped = self.committed = self.parts = self.flushes = self.lost = 0
        self.flushed_s: float | None = None
        self._threads = [threading.Thread(target=self._guard, args=(w,)) for w in (self._write_all, self._beat)]

    def __enter__(self) -> PartWriter:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        try:
            self.close()
        except PrebakeError:
            if kind is None:
                raise

    def check(self) -> None:
        """Raise what went wrong in a thread."""
        if self._error is not None:
            raise self._error

    def take(self) -> Shard | None:
        """Lease the next shard of the plan, None if none is free."""
        lease = self.patiently(self._store.ledger.take_shard, self._plan_id, self._owner, self._settings.lease_s)
        if lease is None:
            return None
        shard = Shard(lease)
        with self._changed:
            self._shards[lease.shard_id] = shard
        return shard

    def others(self) -> bool:
        """Whether other workers hold shards of the plan."""
        leased = self.patiently(self._store.ledger.progress, self._plan_id).leased
        with self._changed:
            return leased > len(self._shards)

    def expect(self, shard: Shard, answers: int) -> None:
        """That many answers will be put for the shard; it is finished when they are committed."""
        with self._changed:
            shard.left = answers
        if not answers:
            self._finish(shard)

    def put(self, shard: Shard, row: dict[str, Any]) -> None:
        """Take one row of the answers table; waits while the writer is too far behind."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._rows) < self._most or self._error is not None)
            if not self._rows:
                self._oldest_s = time.monotonic()
            self._rows.append((shard, row))
            shard.partials.pop(row["fingerprint"], None)
            self.taken += 1
            if len(self._rows) >= self._settings.flush_answers or len(self._rows) == 1:
                self._changed.notify_all()

    def put_partial(self, shard: Shard, key: bytes, partial: Partial) -> None:
        """Keep what a stopped answer had so far, for whoever takes the shard next: at the close, or a flush before."""
        shard.partials[key] = partial

    def flush_partials(self) -> None:
        """Have the writer's thread keep the partial answers now."""
        with self._changed:
            self._partials_due = True
            self._changed.notify_all()

    def close(self) -> None:
        """Write what is there, give the leases back, end the threads. Raises what went wrong in a thread."""
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        shards, self._shards = list(self._shards.values()), {}
        for shard in shards:
            with suppress(StorageError):  # the answers in parts count all the same
                self._keep_partials(shard)
            with suppress(StorageError):  # an unreachable ledger lets the lease run out
                self._store.ledger.release(shard.lease)
        self.check()

    @property
    def held(self) -> int:
        """Shards this worker holds."""
        return len(self._shards)

    @property
    def waiting(self) -> int:
        """Rows that are not in a part yet."""
        return len(self._rows)

    @property
    def _most(self) -> int:
        return _HELD_FLUSHES * self._settings.flush_answers

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that bakes
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._due, timeout=self._patience_s())
                if not self._due() and not self._closing.is_set():
                    continue
                rows = self._rows[:]
                if not rows and self._closing.is_set():
                    return
                shards = list(self._shards.values()) if self._partials_due else []
                self._partials_due = False
            for shard, answers in _by_shard(rows):
                self._commit(shard, answers)
            for shard in shards:
                with suppress(StorageError):  # what is kept in between saves time, no answer hangs on it
                    self._keep_partials(shard)
            with self._changed:
                del self._rows[: len(rows)]
                self._oldest_s = time.monotonic()
                if rows:
                    self.flushes, self.flushed_s = self.flushes + 1, self._oldest_s
                self._changed.notify_all()

    def _due(self) -> bool:
        if self._closing.is_set() or self._partials_due or len(self._rows) >= self._settings.flush_answers:
            return True
        return bool(self._rows) and time.monotonic() - self._oldest_s >= self._settings.flush_s

    def _patience_s(self) -> float:
        if not self._rows:
            return self._settings.flush_s
        return max(0.0, self._settings.flush_s - (time.monotonic() - self._oldest_s))

    def _commit(self, shard: Shard, rows: list[dict[str, Any]]) -> None:
        if shard.lost:
            self.dropped += len(rows)
            return
        data = _parquet(pa.Table.from_pylist(rows, ANSWERS.schema))
        part = Part(shard.part_key, len(rows), len(data), sha256(data).hexdigest())
        shard.parts += 1
        self.committed += len(rows)  # before the ledger does, so that they never look like another worker's
        try:
            self.patiently(self._store.objects.write, part.key, data)
            self.patiently(self._store.ledger.add_part, shard.lease, part)
        except LeaseLostError:
            self.committed -= len(rows)
            self.dropped += len(rows)
            self._drop(shard)
            return
        self.parts += 1
        with self._changed:
            shard.left = None if shard.left is None else shard.left - len(rows)
        if shard.left == 0:
            self._finish(shard)

    def _finish(self, shard: Shard) -> None:
        with self._changed:  # first, so that others() never takes another worker's shard for this one
            self._shards.pop(shard.lease.shard_id, None)
        try:
            self.patiently(self._store.ledger.finish_shard, shard.lease)
        except LeaseLostError:
            self._drop(shard)
            return
        self.finished += 1
        with suppress(StorageError):  # a left-over partial answer is never read again
            self._store.objects.delete(_partials_key(shard.lease.plan_id, shard.lease.shard_id))

    def _drop(self, shard: Shard) -> None:
        with self._changed:
            self.lost += not shard.lost
            shard.lost = True
            if self._shards.get(shard.lease.shard_id) is shard:
                del self._shards[shard.lease.shard_id]

    def _beat(self) -> None:
        while not self._closing.wait(self._settings.lease_s / 4):
            with self._changed:
                shards = list(self._shards.values())
            for shard in shards:
                try:
                    shard.lease = self._store.ledger.heartbeat(shard.lease)
                except LeaseLostError:
                    if shard.left != 0:
                        self._drop(shard)
                except StorageError:
                    continue  # the ledger is away: the lease lasts for three more beats

    def _keep_partials(self, shard: Shard) -> None:
        if shard.partials and not shard.lost:
            rows = [{"fingerprint": key, **asdict(partial)} for key, partial in shard.partials.copy().items()]
            table = pa.Table.from_pylist(rows, _PARTIAL_SCHEMA)
            key = _partials_key(shard.lease.plan_id, shard.lease.shard_id)
            self.patiently(self._store.objects.write, key, _parquet(table))

    def patiently(self, work: Callable[..., T], *args: Any) -> T:
        """Do it, again and again for a while if the store or the ledger is away; StorageError if they stay so."""
        for wait_s in _BACK_OFF_S:
            try:
                return work(*args)
            except LeaseLostError:
                raise
            except StorageError as error:
                logger.warning("%s; trying again in %g s", error, wait_s)
                if not self._stop.requested:
                    self._stop.wait(wait_s)
                elif wait_s <= _LAST_WAIT_S:
                    time.sleep(wait_s)
                else:
                    break
        return work(*args)


def read_fingerprints(store: Store, lease: Lease) -> set[bytes]:
    """The fingerprints of the shard that committed parts have answers, or refusals, for."""
    found: set[bytes] = set()
    for part in store.ledger.parts(lease.plan_id, lease.shard_id):
        table = pq.read_table(BytesIO(store.objects.read(part.key)), columns=["fingerprint"])
        found.update(table["fingerprint"].to_pylist())
    return found


def read_partials(store: Store, plan_id: str, shard_id: int) -> dict[bytes, Partial]:
    """What a worker before had of the shard's unfinished answers, by fingerprint."""
    key = _partials_key(plan_id, shard_id)
    if store.objects.stat(key) is None:
        return {}
    rows = pq.read_table(BytesIO(store.objects.read(key))).to_pylist()
    return {row["fingerprint"]: Partial(row["model"], tuple(row["token_ids"]), row["logprob_sum"]) for row in rows}


def _partials_key(plan_id: str, shard_id: int) -> str:
    return f"{PARTIALS}/{plan_id}/{shard_id:05d}.parquet"


def _by_shard(rows: list[tuple[Shard, dict[str, Any]]]) -> list[tuple[Shard, list[dict[str, Any]]]]:
    shards: dict[int, tuple[Shard, list[dict[str, Any]]]] = {}
    for shard, row in rows:
        shards.setdefault(id(shard), (shard, []))[1].append(row)
    return list(shards.values())


def _parquet(table: pa.Table) -> bytes:
    sink = BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
