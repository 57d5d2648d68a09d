"""The lookup library: opens a serving snapshot on local disk and gives the answer to a request in microseconds.

In: a store's folder or S3 address, or one snapshot's folder. Out: answers, by fingerprint or by whole request, one or
many at once. The data is mapped read-only, so that all processes of a machine share one copy in memory and each
pays only for its own heap; nothing is ever written. Any number of threads may share one AnswerStore.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from hashlib import file_digest
from pathlib import Path
from time import time_ns
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

from prebake.answer import Answer, microseconds
from prebake.answer_file import EVER, REMEDY, AnswerFile
from prebake.errors import SnapshotError
from prebake.manifest import DATA, MANIFEST, POINTER, SNAPSHOTS, File, Manifest, read_manifest, read_pointer
from prebake.request import Bypass, Keyed, key_request
from prebake.routes import Routes
from prebake.verdicts import NO_VERDICTS, Verdicts, Withheld

_new: Final = tuple.__new__


class Lookup(NamedTuple):
    """What a whole request found: the answer if any, its key or the reason why it has none, and why it is withheld."""

    answer: Answer | None
    key: Keyed | Bypass
    withheld: Withheld | None = None

    @property
    def cache(self) -> Literal["hit", "miss", "bypass"]:
        """The outcome in one word, as the gateway's response header has it."""
        if self.answer is not None:
            return "hit"
        return "bypass" if isinstance(self.key, Bypass) else "miss"


class AnswerStore:
    """One open snapshot. Use it with ``with``, or close it."""

    def __init__(self, folder: Path, manifest: Manifest, answers: AnswerFile) -> None:
        """Take over what :meth:`open` has opened and checked."""
        self.folder = folder
        self.manifest = manifest
        self._find: Callable[[bytes, int], Answer | None] = answers.get

    @classmethod
    def open(cls, address: str | os.PathLike[str], *, verify: bool = False, cache_dir: str = "") -> AnswerStore:
        """Open what is served now from a store (its folder or ``s3://bucket/prefix``), or one snapshot's folder.

        The manifest, the size and the number of answers are always checked. ``verify`` also reads the whole file
        and checks its SHA-256: do it once, where a new version is activated. From S3 the snapshot is downloaded into
        ``cache_dir`` (empty: the user's cache folder), always verified, and shared with all who look there, gateways
        too. Raises SnapshotError naming the file and the remedy for what is missing, damaged, cut short or of a later
        format, StorageError if S3 or the disk refuse.
        """
        if str(address).startswith("s3://"):
            from storage.snapshot import fetch_current  # only who asks for S3 pays for its client

            folder = fetch_current(str(address), cache_dir)
        else:
            folder = _current(Path(address))
        manifest = read_manifest(_read(folder / MANIFEST), str(folder / MANIFEST))
        data = folder / DATA
        check_size(data, manifest)
        if verify:
            check_digest(data, manifest)
        answers = AnswerFile(data)
        if len(answers) != manifest.answers:
            raise SnapshotError(f"{data}: has {len(answers)} answers, its manifest says {manifest.answers}; {REMEDY}")
        return cls(folder, manifest, answers)

    @property
    def version(self) -> str:
        """The snapshot's version."""
        return self.manifest.version

    def get(self, fingerprint: bytes, now: datetime | None = None) -> Answer | None:
        """The answer with that key if it is still good at ``now`` (an aware time; without: the present).

        Raises SnapshotError if its bytes are damaged or the store was closed.
        """
        return self._find(fingerprint, time_ns() // 1000 if now is None else microseconds(now))

    def get_many(self, fingerprints: Sequence[bytes], now: datetime | None = None) -> list[Answer | None]:
        """What :meth:`get` gives for each, in their order: one moment for all, each key read once, page after page."""
        now_us = microseconds(now or datetime.now(UTC))
        found = {fingerprint: self._find(fingerprint, now_us) for fingerprint in sorted(set(fingerprints))}
        return [found[fingerprint] for fingerprint in fingerprints]

    def lookup(
        self,
        body: Any,
        routes: Routes,
        tenant: str | None = None,
        now: datetime | None = None,
        namespace: str = "",
        verdicts: Verdicts = NO_VERDICTS,
    ) -> Lookup:
        """The answer to the parsed JSON body of a request, with its key or the reason why it was not looked up.

        ``verdicts``: what people have blocked and approved (``storage.verdicts.read_verdicts``). Without them, answers
        of routes that want approval are withheld; what is blocked is left out of the next snapshot.
        """
        key = key_request(body, routes, tenant, namespace)
        if type(key) is not Keyed:
            return _new(Lookup, (None, key, None))
        answer = self.get(key.fingerprint, now)
        if verdicts is NO_VERDICTS and not key.route.approval:  # nothing to ask, in a twentieth of the time
            return _new(Lookup, (answer, key, None))
        withheld = verdicts.withhold(key.route, key.fingerprint, answer)
        return _new(Lookup, (answer if withheld is None else None, key, withheld))

    def lookup_many(
        self,
        bodies: Iterable[Any],
        routes: Routes,
        tenant: str | None = None,
        now: datetime | None = None,
        namespace: str = "",
        verdicts: Verdicts = NO_VERDICTS,
    ) -> list[Lookup]:
        """What :meth:`lookup` gives for each request of one tenant, in their order: one moment for all."""
        moment = now or datetime.now(UTC)
        return [self.lookup(body, routes, tenant, moment, namespace, verdicts) for body in bodies]

    def __contains__(self, fingerprint: bytes) -> bool:
        """Whether there is an answer with that key, expired or not."""
        return self._find(fingerprint, EVER) is not None

    def __len__(self) -> int:
        """Answers in the snapshot, expired ones included."""
        return self.manifest.answers

    def close(self) -> None:
        """Let go of the snapshot; it is unmapped when nobody reads from it any more."""
        self._find = self._refuse

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _refuse(self, _fingerprint: bytes, _now_us: int) -> Answer | None:
        raise SnapshotError(f"{self.folder}: the snapshot was closed; open it again")


def check_size(data: Path, manifest: Manifest | File) -> None:
    """Raise SnapshotError if the file is missing or not as long as its manifest says."""
    try:
        size = data.stat().st_size
    except OSError as error:
        raise SnapshotError(f"{data}: cannot be read: {error.strerror}; {REMEDY}") from error
    if size != manifest.bytes:
        raise SnapshotError(f"{data}: {size} bytes long, its manifest says {manifest.bytes}; {REMEDY}")


def check_digest(data: Path, manifest: Manifest | File) -> None:
    """Raise SnapshotError if the file's SHA-256 is not the manifest's; reads the whole file."""
    try:
        with data.open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SnapshotError(f"{data}: cannot be read: {error.strerror}; {REMEDY}") from error
    if found != manifest.sha256:
        raise SnapshotError(f"{data}: damaged: its SHA-256 is not the manifest's {manifest.sha256}; {REMEDY}")


def _current(path: Path) -> Path:
    """The snapshot's folder, given it, the folder of all snapshots or the store's."""
    for snapshots in (path, path / SNAPSHOTS):
        pointer = snapshots / POINTER
        if pointer.exists() and not (snapshots / MANIFEST).exists():
            return snapshots / read_pointer(_read(pointer), str(pointer)).current
    return path


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise SnapshotError(
            f"{file}: no such file; is this a snapshots folder? Publish one with `prebake publish`"
        ) from None
    except OSError as error:
        raise SnapshotError(f"{file}: cannot be read: {error.strerror}; {REMEDY}") from error
