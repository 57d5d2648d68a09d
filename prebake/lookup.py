"""The lookup library: opens a serving snapshot on local disk and gives the answer to a request in microseconds.

In: a store's folder or S3 address, or one snapshot's folder. Out: answers, by fingerprint or by whole request, one or
many at once. The data is mapped read-only, so that all processes of a machine share one copy in memory and each
pays only for its own heap; nothing is ever written. Any number of threads may share one AnswerStore.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import file_digest
from pathlib import Path
from time import time
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self
from weakref import WeakValueDictionary

import lmdb

from prebake.answer import Answer
from prebake.errors import SnapshotError
from prebake.manifest import DATA, MANIFEST, POINTER, SNAPSHOTS, File, Manifest, read_manifest, read_pointer
from prebake.request import Bypass, Keyed, key_request
from prebake.routes import Routes
from prebake.verdicts import NO_VERDICTS, Verdicts, Withheld

_REMEDY: Final = "publish again or go back with `prebake rollback`"
_decode: Final = Answer.decode
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

    def __init__(self, folder: Path, manifest: Manifest, environment: lmdb.Environment) -> None:
        """Take over what :meth:`open` has opened and checked."""
        self.folder = folder
        self.manifest = manifest
        self._reader: _Reader | _Closed = _Reader(environment)

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
        environment = _map(data)
        if (found := environment.stat()["entries"]) != manifest.answers:
            raise SnapshotError(f"{data}: has {found} answers, its manifest says {manifest.answers}; {_REMEDY}")
        return cls(folder, manifest, environment)

    @property
    def version(self) -> str:
        """The snapshot's version."""
        return self.manifest.version

    def get(self, fingerprint: bytes, now: datetime | None = None) -> Answer | None:
        """The answer with that key if it is still good at ``now`` (an aware time; without: the present).

        Raises SnapshotError if its bytes are damaged or the store was closed.
        """
        try:
            value = self._reader.get(fingerprint)
        except lmdb.Error as error:
            raise self._unreadable(error) from error
        if value is None:
            return None
        answer = _decode(fingerprint, value)
        return answer if (time() if now is None else now.timestamp()) * 1e6 < answer.expires_us else None

    def get_many(self, fingerprints: Sequence[bytes], now: datetime | None = None) -> list[Answer | None]:
        """What :meth:`get` gives for each, in their order: one moment for all, each key read once, page after page."""
        now = now or datetime.now(UTC)
        found = {fingerprint: self.get(fingerprint, now) for fingerprint in sorted(set(fingerprints))}
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
        route, _, fingerprint = key
        answer = self.get(fingerprint, now)
        if verdicts is NO_VERDICTS and not route.approval:  # nothing to ask, in a twentieth of the time
            return _new(Lookup, (answer, key, None))
        withheld = verdicts.withhold(route, fingerprint, answer)
        return _new(Lookup, (answer if withheld is None else None, key, withheld))

    def __contains__(self, fingerprint: bytes) -> bool:
        """Whether there is an answer with that key, expired or not."""
        try:
            return self._reader.get(fingerprint) is not None
        except lmdb.Error as error:
            raise self._unreadable(error) from error

    def __len__(self) -> int:
        """Answers in the snapshot, expired ones included."""
        return self.manifest.answers

    def close(self) -> None:
        """Let go of the snapshot; it is unmapped when the last AnswerStore of this process lets go of it."""
        self._reader = _Closed(self.folder)

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _unreadable(self, error: lmdb.Error) -> SnapshotError:
        return SnapshotError(f"{self.folder / DATA}: cannot be read: {error}; {_REMEDY}")


class _Reader(threading.local):
    """One read transaction per thread, held open: the data never changes, and opening one costs as much as a get."""

    def __init__(self, environment: lmdb.Environment) -> None:
        self.get: Callable[[bytes], bytes | None] = environment.begin().get


class _Closed:
    """What a closed store reads with."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, _fingerprint: bytes) -> bytes | None:
        raise SnapshotError(f"{self._folder}: the snapshot was closed; open it again")


# LMDB refuses to map one file twice in a process, so that stores of the same snapshot share the mapping.
_mapped: WeakValueDictionary[tuple[int, int], lmdb.Environment] = WeakValueDictionary()
_mapping = threading.Lock()


def _map(data: Path) -> lmdb.Environment:
    try:
        with _mapping:
            file = data.stat()
            environment = _mapped.get((file.st_dev, file.st_ino))
            if environment is None:
                environment = lmdb.open(str(data), subdir=False, readonly=True, lock=False, map_size=file.st_size)
                _mapped[file.st_dev, file.st_ino] = environment
            return environment
    except lmdb.Error as error:
        raise SnapshotError(f"{data}: not a snapshot's data ({error}); {_REMEDY}") from error
    except OSError as error:
        raise SnapshotError(f"{data}: cannot be read: {error.strerror}; {_REMEDY}") from error


def check_size(data: Path, manifest: Manifest | File) -> None:
    """Raise SnapshotError if the file is missing or not as long as its manifest says."""
    try:
        size = data.stat().st_size
    except OSError as error:
        raise SnapshotError(f"{data}: cannot be read: {error.strerror}; {_REMEDY}") from error
    if size != manifest.bytes:
        raise SnapshotError(f"{data}: {size} bytes long, its manifest says {manifest.bytes}; {_REMEDY}")


def check_digest(data: Path, manifest: Manifest | File) -> None:
    """Raise SnapshotError if the file's SHA-256 is not the manifest's; reads the whole file."""
    try:
        with data.open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SnapshotError(f"{data}: cannot be read: {error.strerror}; {_REMEDY}") from error
    if found != manifest.sha256:
        raise SnapshotError(f"{data}: damaged: its SHA-256 is not the manifest's {manifest.sha256}; {_REMEDY}")


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
        raise SnapshotError(f"{file}: cannot be read: {error.strerror}; {_REMEDY}") from error
