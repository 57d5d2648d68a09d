"""Near misses by day: what nearly was a hit is compared, noted for judging, and served where that was earned.

In: misses of routes whose ``near`` is not off. Out: Parquet segments ``near-misses/day=.../*.parquet`` with the columns
of NEAR_MISSES, and to a route that serves, the near question. One thread does all of it behind a bounded queue: the
event loop never embeds, searches or writes. What does not fit into the queue is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from gateway.metrics import Metrics
from gateway.reload import Serving
from gateway.segments import Segments
from prebake.errors import PrebakeError
from prebake.lookup import AnswerStore
from prebake.near import Embedding, Near, NearIndex
from prebake.request import Keyed
from prebake.settings import Near as NearSettings
from prebake.tables import NEAR_MISSES
from storage.objects import Objects

FOLDER: Final = "near-misses"
SEGMENT_ROWS: Final = 1000
# A request that could be served waits for at most so many comparisons before its own.
_WAITING: Final = 16
_LONGEST_S: Final = 1.0

logger = logging.getLogger(__name__)


class Miss(NamedTuple):
    """A question without an answer of its own, and the group in which a near one may be looked for."""

    at: float
    question: str
    group: bytes
    key: Keyed


class _Job(NamedTuple):
    miss: Miss
    served: asyncio.Future[Near | None] | None


class NearMisses:
    """The queue and the thread behind it. Misses are handed over on the event loop."""

    def __init__(
        self,
        objects: Objects,
        serving: Serving,
        settings: NearSettings,
        *,
        flush_s: float,
        metrics: Metrics,
    ) -> None:
        self._segments = Segments(objects, FOLDER, NEAR_MISSES.schema)
        self._serving = serving
        self._settings = settings
        self._flush_s = flush_s
        self._metrics = metrics
        self._jobs: queue.Queue[_Job | None] = queue.Queue(settings.queue)
        self._rows: list[tuple[Any, ...]] = []
        self._written = 0.0
        self._embedding: Embedding | None = None
        self._store: AnswerStore | None = None
        self._index: NearIndex | None = None
        self._problem = ""
        self._open = False
        self._thread = threading.Thread(target=self._run, name="prebake-near", daemon=True)

    def start(self) -> None:
        """Start the thread; it loads the embedding first."""
        self._open = True
        self._thread.start()

    def close(self) -> None:
        """Compare and write what is queued, then stop."""
        self._open = False
        self._jobs.put(None)
        self._thread.join()

    async def look(self, miss: Miss) -> Near | None:
        """Take a miss over; the near question whose answer may be served, on routes that serve. Never raises."""
        served = None
        if miss.key.route.near == "serve" and self._jobs.qsize() < _WAITING:
            served = asyncio.get_running_loop().create_future()
        try:
            if not self._open:
                return None
            self._jobs.put_nowait(_Job(miss, served))
        except queue.Full:
            self._metrics.near_dropped.inc()
            return None
        if served is None:
            return None
        try:
            return await asyncio.wait_for(served, _LONGEST_S)
        except TimeoutError:
            return None

    def _run(self) -> None:
        try:
            self._embedding = Embedding(self._settings.model)
        except PrebakeError as error:
            logger.error("%s; near misses are neither noted nor served", error)
        while True:
            try:
                job = self._jobs.get(timeout=self._flush_s)
            except queue.Empty:
                self._flush()
                continue
            if job is None:
                break
            self._answer(job, self._compare(job.miss))
            if len(self._rows) >= SEGMENT_ROWS or time.monotonic() - self._written >= self._flush_s:
                self._flush()
        self._flush()

    def _compare(self, miss: Miss) -> Near | None:
        """Search, note what is found, and return it if it may be served."""
        route = miss.key.route
        try:
            index = self._current()
            near = index.nearest(miss.group, miss.question) if index else None
        except Exception as error:  # noqa: BLE001 - a near miss is a miss: the thread must outlive whatever is wrong
            self._say(error)
            near = None
        if near is None:
            self._metrics.near_misses.labels(route.name, "nothing").inc()
            return None
        served = route.near == "serve" and self._is_near_enough(route.name, near)
        self._metrics.near_misses.labels(route.name, "near_enough" if served else near.difference or "near").inc()
        version = self._store.version if self._store else ""
        self._rows.append(
            (
                int(miss.at * 1e6), route.name, miss.key.scope, miss.key.fingerprint, miss.question, near.fingerprint,
                near.question, near.similarity, near.difference, served, version,
            )
        )  # fmt: skip
        return near if served else None

    def _is_near_enough(self, route: str, near: Near) -> bool:
        threshold = self._store.manifest.near.get(route) if self._store else None
        return threshold is not None and near.difference is None and near.similarity >= threshold.similarity

    def _current(self) -> NearIndex | None:
        """The index of the snapshot that is served now."""
        store = self._serving.store
        if store is not self._store and self._embedding is not None:
            if self._index is not None:
                self._index.close()
            self._store, self._index = store, None
            if store is not None:
                self._index = NearIndex.open(store.folder, store.manifest, self._embedding)
        return self._index

    @staticmethod
    def _answer(job: _Job, near: Near | None) -> None:
        def set_result(served: asyncio.Future[Near | None]) -> None:
            if not served.done():  # the client left meanwhile
                served.set_result(near)

        if job.served is not None:
            job.served.get_loop().call_soon_threadsafe(set_result, job.served)

    def _flush(self) -> None:
        """Write what was noted; if that fails the rows wait, as many as a queue holds."""
        self._written = time.monotonic()
        if not self._rows:
            return
        try:
            self._segments.write(datetime.now(UTC), zip(*self._rows, strict=True))
        except Exception as error:  # noqa: BLE001 - full disk, S3, whatever: requests must go on
            self._say(error)
            kept = self._rows[-self._settings.queue :]
            self._metrics.near_dropped.inc(len(self._rows) - len(kept))
            self._rows = kept
        else:
            self._rows, self._problem = [], ""

    def _say(self, error: Exception) -> None:
        """Log each problem once."""
        if str(error) != self._problem:
            self._problem = str(error)
            logger.error("near misses: %s", error, exc_info=not isinstance(error, PrebakeError))
