"""The verdicts of people in the store: one small object ``verdicts.json`` that every gateway watches.

In: fingerprints to block, unblock or approve, approvals to forget. Out: all verdicts as they are then. Each change
replaces the object only if nobody else has changed it meanwhile, and is tried again if somebody has: no verdict is ever
lost.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from prebake.errors import ConflictError
from prebake.verdicts import NO_VERDICTS, Approval, Block, Verdicts, parse_verdicts
from storage.objects import Objects

KEY: Final = "verdicts.json"
_TRIES: Final = 20


def read_verdicts(objects: Objects) -> Verdicts:
    """All verdicts; none before the first. Raises StorageError if they cannot be read."""
    return _read(objects)[0]


def block(objects: Objects, fingerprints: Iterable[bytes], *, now: datetime, note: str = "") -> Verdicts:
    """From now on answer none of these requests from the store; returns all verdicts."""
    blocks = {fingerprint.hex(): Block(at=now, note=note) for fingerprint in fingerprints}
    return _change(objects, lambda had: {"blocked": {**had.blocked, **blocks}})


def unblock(objects: Objects, fingerprints: Iterable[bytes]) -> Verdicts:
    """Answer these requests again; returns all verdicts. What was not blocked stays as it is."""
    freed = {fingerprint.hex() for fingerprint in fingerprints}
    return _change(objects, lambda had: {"blocked": {key: had.blocked[key] for key in had.blocked if key not in freed}})


def approve(objects: Objects, answers: Mapping[bytes, str], *, now: datetime, note: str = "") -> Verdicts:
    """Approve for each fingerprint the answer of that :func:`prebake.verdicts.answer_digest`; returns all verdicts."""
    approvals = {key.hex(): Approval(answer=digest, at=now, note=note) for key, digest in answers.items()}
    return _change(objects, lambda had: {"approved": {**had.approved, **approvals}})


def forget_approvals(objects: Objects, dead: Mapping[str, Approval]) -> Verdicts:
    """Drop these approvals, by fingerprint as in Verdicts; one given anew meanwhile stays. Returns all verdicts."""
    return _change(
        objects,
        lambda had: {"approved": {key: each for key, each in had.approved.items() if dead.get(key) != each}},
    )


def _change(objects: Objects, change: Callable[[Verdicts], dict[str, Any]]) -> Verdicts:
    """Replace what ``change`` names. Raises ConflictError if others were first again and again, else StorageError."""
    for attempt in range(_TRIES):
        verdicts, etag = _read(objects)
        verdicts = verdicts.model_copy(update=change(verdicts))
        try:
            objects.replace(KEY, verdicts.model_dump_json().encode(), etag)
        except ConflictError:
            time.sleep(random.uniform(0, 0.02 * 2 ** min(attempt, 6)))
        else:
            return verdicts
    raise ConflictError(f"{objects.uri}/{KEY}: {_TRIES} changes lost against other writers; run it again")


def _read(objects: Objects) -> tuple[Verdicts, str | None]:
    """The verdicts and the etag to replace them by, which is asked for first: an older one only makes a conflict."""
    found = objects.stat(KEY)
    if found is None:
        return NO_VERDICTS, None
    return parse_verdicts(objects.read(KEY), f"{objects.uri}/{KEY}"), found.etag
