"""The snapshot that is served: watches the pointer, fetches, verifies and maps what is new, then swaps it in.

In: the object store. Out: an open AnswerStore, or the reason why there is none, and people's verdicts on answers.
Looking happens in a thread of its own; the swap and the closing of the old snapshot happen on the event loop, where a
lookup is one step that nothing interrupts: so no request ever meets a closed or a half-swapped snapshot.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from enum import StrEnum
from pathlib import Path

from gateway.metrics import Metrics
from prebake.errors import PrebakeError, SnapshotError
from prebake.lookup import AnswerStore
from prebake.manifest import read_pointer
from prebake.verdicts import NO_VERDICTS
from storage.objects import ObjectInfo, Objects
from storage.snapshot import POINTER_KEY, fetch_snapshot, forget_fetched
from storage.verdicts import KEY as VERDICTS_KEY
from storage.verdicts import read_verdicts

RETRY_BROKEN_S = 30.0

logger = logging.getLogger(__name__)


class NoStore(StrEnum):
    """Why no request can be a hit now."""

    NO_SNAPSHOT = "no_snapshot"  # nothing was published, or the store was deleted
    BROKEN = "store_broken"  # the snapshot is damaged or of a version this prebake does not read
    UNREACHABLE = "store_unreachable"  # disk or S3 refuse


class Serving:
    """What is served now: ``store`` and, for the response header, ``version``; ``reason`` where there is no store.

    ``verdicts`` are those last read. Nothing is opened before they were: what is blocked is never served.
    """

    def __init__(self, objects: Objects, *, cache_dir: Path, reload_s: float, metrics: Metrics) -> None:
        self.store: AnswerStore | None = None
        self.version = b""
        self.verdicts = NO_VERDICTS
        self.reason: NoStore = NoStore.NO_SNAPSHOT
        self.problem = ""
        self._objects = objects
        self._cache_dir = cache_dir
        self._reload_s = reload_s
        self._metrics = metrics
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seen: str | None = None  # etag of the pointer that was last acted upon
        self._seen_verdicts: str | None = ""  # ... and of the verdicts; empty: not looked at yet
        self._retry_at = 0.0

    async def start(self) -> None:
        """Open what is published, then keep watching."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.look)
        self._thread = threading.Thread(target=self._watch, name="prebake-reload", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the watch and let go of the snapshot."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 10)
        self._swap(None)

    def look(self) -> None:
        """Act on verdicts and pointer if they changed. Never raises: what goes wrong is the reason, and logged once."""
        found = None
        try:
            self._look_at_verdicts()
            found = self._objects.stat(POINTER_KEY)
            if found is None:
                self._seen = None
                self._drop()
            elif found.etag != self._seen or (self.problem and time.monotonic() >= self._retry_at):
                self._open_current()
                self._seen = found.etag
        except SnapshotError as error:
            if self._is_outdated(found):
                return  # published over or deleted while we read it: the next look sees what is there now
            self._seen, self._retry_at = found.etag if found else None, time.monotonic() + RETRY_BROKEN_S
            self._note(NoStore.BROKEN, error)
        except (PrebakeError, OSError) as error:
            self._note(NoStore.UNREACHABLE, error)
        except Exception as error:  # noqa: BLE001 - the watch must outlive whatever a storage library may raise
            self._note(NoStore.UNREACHABLE, error)

    def _watch(self) -> None:
        while not self._stop.wait(self._reload_s):
            self.look()

    def _look_at_verdicts(self) -> None:
        found = self._objects.stat(VERDICTS_KEY)
        etag = found.etag if found else None
        if etag != self._seen_verdicts:
            self.verdicts = read_verdicts(self._objects)
            self._seen_verdicts = etag

    def _open_current(self) -> None:
        place = f"{self._objects.uri}/{POINTER_KEY}"
        version = read_pointer(self._objects.read(POINTER_KEY), place).current
        if self.store is None or self.store.version != version:
            folder = fetch_snapshot(self._objects, version, self._cache_dir)
            store = AnswerStore.open(folder, verify=True)
            self._on_loop(store)
            self._metrics.reloads.labels("served").inc()
            logger.info("serving snapshot %s: %d answers", version, len(store))
            forget_fetched(self._cache_dir, but=version)
        self.problem = ""

    def _is_outdated(self, seen: ObjectInfo | None) -> bool:
        try:
            now = self._objects.stat(POINTER_KEY)
        except PrebakeError:
            return False
        return (now and now.etag) != (seen and seen.etag)

    def _drop(self) -> None:
        self.reason = NoStore.NO_SNAPSHOT
        if self.store is not None:
            self._on_loop(None)
        if self.problem or self.store is not None:
            logger.warning("%s: no snapshot is published: every request goes to the upstream", self._objects.uri)
        self.problem = ""

    def _note(self, reason: NoStore, error: Exception) -> None:
        """A new problem is logged once; the snapshot that is open stays in use."""
        self.reason = reason
        if str(error) != self.problem:
            self.problem = str(error)
            self._metrics.reloads.labels(reason.value).inc()
            instead = (
                f"snapshot {self.store.version} stays in use"
                if self.store is not None
                else "every request goes upstream"
            )
            logger.error("%s; %s", error, instead)

    def _on_loop(self, store: AnswerStore | None) -> None:
        if self._loop is None or self._loop.is_closed():
            return
        done = threading.Event()

        def swap() -> None:
            self._swap(store)
            done.set()

        self._loop.call_soon_threadsafe(swap)
        while not done.wait(0.1) and not self._stop.is_set():
            pass

    def _swap(self, store: AnswerStore | None) -> None:
        old, self.store = self.store, store
        self.version = store.version.encode() if store is not None else b""
        self._metrics.snapshot_answers.set(len(store) if store is not None else 0)
        self._metrics.snapshot_bytes.set(store.manifest.bytes if store is not None else 0)
        self._metrics.snapshot_created.set(store.manifest.created_at.timestamp() if store is not None else 0)
        if old is not None:
            self._metrics.snapshot_info.labels(old.version).set(0)
            old.close()
        if store is not None:
            self._metrics.snapshot_info.labels(store.version).set(1)
