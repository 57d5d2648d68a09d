"""Publish: what was baked becomes what is served. In: the ledger's parts. Out: the answers table, a serving snapshot,
and ``answers.duckdb``. Memory: one part, or DuckDB's limit (``mine.memory_gb``) while the answers are sorted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from io import BytesIO
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from prebake.answer import Answer, says_something
from prebake.errors import StorageError
from prebake.progress import Advance, Progress, Silent
from prebake.settings import Settings
from prebake.stop import Stop
from prebake.tables import FINGERPRINT
from storage.catalog import write_catalog
from storage.ledger import Part
from storage.objects import Objects
from storage.scratch import open_scratch
from storage.snapshot import publish_snapshot
from storage.store import Store
from storage.verdicts import read_verdicts
from tasks.approvals import forget_dead_approvals
from tasks.near import write_near

_BATCH: Final = 10_000


@dataclass(frozen=True)
class PublishReport:
    """What was published: parts and rows new in the answers table, answers in the snapshot, and where they are."""

    parts: int
    rows: int
    answers: int
    snapshot: str
    catalog: str


def publish(
    store: Store,
    settings: Settings,
    *,
    run_id: str,
    now: datetime,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> PublishReport:
    """Add finished parts to the answers table and serve the newest good answer of each fingerprint at ``now`` (UTC).

    Can be stopped or killed at any moment and run again: each part is added once, readers see the snapshot before or
    after. Raises StorageError where a part is damaged or the store refuses, Interrupted when ``stop`` was requested.
    """
    progress, stop = progress or Silent(), stop or Stop()
    parts, rows = collect(store, progress=progress, stop=stop)
    stop.check()
    with progress.track("publish", None) as advance:
        answers = _Passing(servable(store, settings, now), advance, stop)
        manifest = publish_snapshot(
            store.objects,
            answers,
            run_id=run_id,
            keep=settings.store.keep_snapshots,
            now=now,
            beside=lambda folder: write_near(store, settings, now, folder),
        )
    forget_dead_approvals(store, now)
    return PublishReport(parts, rows, answers.count, manifest.version, write_catalog(store))


class _Passing:
    """Counts the answers that pass and moves the bar, until a stop is requested."""

    def __init__(self, answers: Iterator[Answer], advance: Advance, stop: Stop) -> None:
        self._answers, self._advance, self._stop = answers, advance, stop
        self.count = 0

    def __iter__(self) -> Iterator[Answer]:
        for answer in self._answers:
            self._stop.check()
            self.count += 1
            self._advance(1)
            yield answer


def collect(store: Store, *, progress: Progress | None = None, stop: Stop | None = None) -> tuple[int, int]:
    """Add the parts that the answers table lacks, each exactly once; returns how many parts and rows were new."""
    progress, stop = progress or Silent(), stop or Stop()
    waiting = [part for plan_id in _open_plans(store) for part in store.ledger.parts(plan_id)]
    parts = rows = 0
    with progress.track("collect", len(waiting)) as advance:
        for part in waiting:
            stop.check()
            if store.answers.append(_read(store, part), once=part.key):
                parts, rows = parts + 1, rows + part.rows
            advance(1)
    return parts, rows


def _open_plans(store: Store) -> list[str]:
    """The plans of which the ledger counts other rows than the answers table has."""
    with duckdb.connect() as connection:
        connection.register("plan", store.plan.scan())
        connection.register("answers", store.answers.scan())
        rows = connection.execute(
            """
            with had as (select plan_id, count(*) as rows from answers group by plan_id)
            select distinct plan.plan_id, coalesce(had.rows, 0)
            from plan left join had using (plan_id) where plan.decision = 'bake' order by plan_id
            """
        ).fetchall()
    return [plan_id for plan_id, had in rows if store.ledger.progress(plan_id).rows != had]


def _read(store: Store, part: Part) -> pa.Table:
    """The rows of one part. Raises StorageError if its bytes are not those the ledger was told of."""
    data = store.objects.read(part.key)
    if sha256(data).hexdigest() != part.sha256:
        raise StorageError(
            f"{store.objects.uri}/{part.key}: the part is damaged, its SHA-256 is not the ledger's {part.sha256}; "
            "put it back from your backup, or bake its day again"
        )
    return pq.read_table(BytesIO(data))


def servable(store: Store, settings: Settings, now: datetime) -> Iterator[Answer]:
    """What may be served at ``now``: of each fingerprint the newest answer that is whole and has not expired.

    In the order of their fingerprints. Answers of routes that are gone or off are left out, and what is blocked; those
    cut off by the length limit too, unless their route serves them; and those that say nothing.
    """
    table = store.answers.scan()
    routes = [{"route": route.name, "truncated": route.serve_truncated} for route in settings.routes if route.enabled]
    with open_scratch(settings) as connection:
        connection.register("answers", table)
        connection.register("blocked", blocked_keys(store.objects))
        connection.register("routes", pa.Table.from_pylist(routes, schema=_ROUTES))
        reader = connection.sql(_SERVABLE_SQL, params={"now": now}).to_arrow_reader(_BATCH)
        for batch in reader:
            yield from filter(_says_something, map(_answer, batch.to_pylist()))


def blocked_keys(objects: Objects) -> pa.Table:
    """The fingerprints that people have blocked, as a table of one column."""
    return pa.table({"fingerprint": pa.array(sorted(read_verdicts(objects).blocked_keys), FINGERPRINT)})


_ROUTES: Final = pa.schema([("route", pa.string()), ("truncated", pa.bool_())])
_SERVABLE_SQL: Final = """
    with good as (
        select answers.* from answers join routes using (route)
        where expires_at > $now and fingerprint not in (from blocked)
            and (status = 'answered' or (status = 'truncated' and routes.truncated))
    ), newest as (
        select fingerprint, max(baked_at) as baked_at from good group by fingerprint
    )
    select good.* from good join newest using (fingerprint, baked_at) order by fingerprint
"""


def _answer(row: dict[str, Any]) -> Answer:
    return Answer(
        row["fingerprint"],
        row["route"],
        row["message"].encode(),
        finish_reason=row["finish_reason"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        model=row["model"],
        run_id=row["run_id"],
        baked_at=row["baked_at"],
        expires_at=row["expires_at"],
    )


def _says_something(answer: Answer) -> bool:
    return says_something(answer.message)
