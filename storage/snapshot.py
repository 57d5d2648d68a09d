"""Serving snapshots: built from answers, published whole or not at all, listed, rolled back, fetched.

In: answers, best in the order of their fingerprints. Out: ``snapshots/<version>/`` with ``answers.bin`` and
``manifest.json``, and the pointer ``snapshots/current``, one small object that names the served version and all
published ones. Replacing the pointer is the publication: what it does not name is garbage of an interrupted
publish, which the next one deletes. Memory: some 100 bytes an answer; disk: twice the snapshot, in TMPDIR.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from hashlib import file_digest, sha256
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, Final

from prebake.answer import Answer, says_something
from prebake.answer_file import EVER, AnswerFile
from prebake.errors import ConflictError, SnapshotError, StorageError
from prebake.lookup import check_digest, check_size
from prebake.manifest import DATA, MANIFEST, POINTER, SNAPSHOTS, File, Manifest, Pointer, read_manifest, read_pointer
from prebake.settings import Store
from storage.answer_file import write_answers
from storage.objects import Objects, open_objects

POINTER_KEY: Final = f"{SNAPSHOTS}/{POINTER}"


def publish_snapshot(
    objects: Objects,
    answers: Iterable[Answer],
    *,
    run_id: str,
    keep: int,
    now: datetime,
    beside: Callable[[Path], dict[str, Any]] | None = None,
) -> Manifest:
    """Build a snapshot of these answers and make it the current one; returns its manifest.

    ``beside`` may write further files into the folder it is given, which are published with the snapshot, and returns
    what the manifest says of them.

    Answers come fastest in the order of their fingerprints, any order is right; of several with one fingerprint the
    last wins. The newest ``keep`` snapshots stay for rollback. Raises ConflictError if somebody else published
    meanwhile (then nothing has changed), SnapshotError for an answer that says nothing, StorageError if disk or store
    refuse.
    """
    pointer, etag = _read_pointer(objects)
    published = pointer.versions if pointer else ()
    with TemporaryDirectory(prefix="prebake-snapshot-") as folder:
        data = Path(folder, DATA)
        contents = _build(data, answers)
        extras = Path(folder, "beside")
        extras.mkdir()
        contents |= beside(extras) if beside else {}
        files = {file.name: _measure(file) for file in sorted(extras.iterdir())}
        version = _next_version(published, now)
        manifest = Manifest(version=version, run_id=run_id, created_at=now, files=files, **contents)
        for file in (data, *extras.iterdir()):
            objects.upload(_key(version, file.name), file)
    objects.write(_key(version, MANIFEST), manifest.model_dump_json(indent=2).encode())
    kept = (*published, version)[-keep:]
    _swap(objects, Pointer(current=version, versions=kept), etag)
    _delete_all_but(objects, kept)
    return manifest


def snapshots(objects: Objects) -> list[Manifest]:
    """The snapshots one can go back to, newest first."""
    pointer, _ = _read_pointer(objects)
    return [_manifest(objects, version) for version in reversed(pointer.versions)] if pointer else []


def current(objects: Objects) -> Manifest | None:
    """The snapshot that is served; None before the first publish."""
    pointer, _ = _read_pointer(objects)
    return _manifest(objects, pointer.current) if pointer else None


def rollback(objects: Objects, version: str | None = None) -> Manifest:
    """Serve that snapshot again, or the one before the current; returns its manifest.

    Raises SnapshotError if there is none or its data is not all there, ConflictError if somebody published meanwhile.
    """
    pointer, etag = _read_pointer(objects)
    if pointer is None:
        raise SnapshotError(f"{objects.uri}: no snapshot was ever published; run `prebake publish`")
    if version is None:
        before = pointer.versions[: pointer.versions.index(pointer.current)]
        if not before:
            raise SnapshotError(f"{objects.uri}: no snapshot older than {pointer.current} is kept; nothing was changed")
        version = before[-1]
    elif version not in pointer.versions:
        raise SnapshotError(f"{objects.uri}: no snapshot {version!r}; there are: {', '.join(pointer.versions)}")
    manifest = _manifest(objects, version)
    found = objects.stat(_key(version, DATA))
    if found is None or found.size != manifest.bytes:
        raise SnapshotError(f"{objects.uri}: the data of snapshot {version} is not all there; nothing was changed")
    _swap(objects, Pointer(current=version, versions=pointer.versions), etag)
    return manifest


def fetch_snapshot(objects: Objects, version: str, folder: Path) -> Path:
    """The local folder of a snapshot, ready for ``AnswerStore.open``.

    A store on local disk has it already. From S3 it is downloaded beside, verified and renamed to
    ``folder/<version>``; a snapshot that is there is not fetched again. Raises SnapshotError if what came is damaged.
    """
    local = objects.local_path(f"{SNAPSHOTS}/{version}")
    if local is not None:
        return local
    target = folder / version
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(mkdtemp(prefix=f".{version}-", dir=folder))
    try:
        manifest = _manifest(objects, version)
        for name, file in {DATA: File(bytes=manifest.bytes, sha256=manifest.sha256), **manifest.files}.items():
            objects.download(_key(version, name), beside / name)
            check_size(beside / name, file)
            check_digest(beside / name, file)
        (beside / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
        try:
            beside.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same verified bytes
                raise
    except OSError as error:
        raise StorageError(f"{target}: the snapshot cannot be stored here: {error.strerror}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def fetch_current(address: str, cache_dir: str = "") -> Path:
    """The local folder of the snapshot that is served from the store at that address, as ``Store.root`` has it.

    Raises SnapshotError if nothing was published there or what came is damaged, StorageError if it cannot be reached.
    """
    objects = open_objects(Store(root=address))
    manifest = current(objects)
    if manifest is None:
        raise SnapshotError(f"{objects.uri}: no snapshot was ever published there; run `prebake publish`")
    folder = cache_folder(cache_dir, objects.uri)
    fetched = fetch_snapshot(objects, manifest.version, folder)
    forget_fetched(folder, but=manifest.version)
    return fetched


def cache_folder(cache_dir: str, store_uri: str) -> Path:
    """Where snapshots of this store are kept when fetched: a folder of its own for each store."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(cache_dir) if cache_dir else Path(caches, "prebake")) / sha256(store_uri.encode()).hexdigest()[:16]


def forget_fetched(folder: Path, *, but: str) -> None:
    """Delete snapshots fetched before; what another process still maps stays readable to it until it lets go."""
    if folder.is_dir():
        for fetched in folder.iterdir():
            if fetched.name != but and not fetched.name.startswith("."):
                shutil.rmtree(fetched, ignore_errors=True)


def _build(data: Path, answers: Iterable[Answer]) -> dict[str, Any]:
    """Write the file of answers; returns what the manifest says about it."""
    try:
        write_answers(data, map(_saying_something, answers))
        return _contents(AnswerFile(data)) | _measure(data).model_dump()
    except OSError as error:
        raise StorageError(
            f"{data.parent}: the snapshot cannot be built here: {error}; free space or set TMPDIR"
        ) from error


def _saying_something(answer: Answer) -> Answer:
    if not says_something(answer.message):
        raise SnapshotError(f"answer {answer.fingerprint.hex()}: says nothing, so it must not be served")
    return answer


def _measure(file: Path) -> File:
    with file.open("rb") as data:
        return File(bytes=file.stat().st_size, sha256=file_digest(data, "sha256").hexdigest())


def _contents(answers: AnswerFile) -> dict[str, Any]:
    """Read every answer back: what is published can be served, and the summary counts what is there."""
    routes: Counter[str] = Counter()
    first: datetime | None = None
    last: datetime | None = None
    for fingerprint in answers:
        answer = answers.get(fingerprint, EVER)
        if answer is None:
            raise StorageError(f"answer {fingerprint.hex()}: written and not found again; publish again")
        routes[answer.route] += 1
        first = min(first or answer.expires_at, answer.expires_at)
        last = max(last or answer.expires_at, answer.expires_at)
    return {
        "answers": routes.total(),
        "routes": dict(sorted(routes.items())),
        "first_expires_at": first,
        "last_expires_at": last,
    }


def _next_version(published: tuple[str, ...], now: datetime) -> str:
    """Sorts after all published ones, whatever the clock does.

    The end keeps two who publish in the same second apart. It is random and no digest of the contents: every hit shows
    the version, and must not depend on what other tenants were answered.
    """
    number = max((int(version.split("-")[0]) for version in published), default=0) + 1
    return f"{number:06d}-{now:%Y%m%dT%H%M%SZ}-{token_hex(4)}"


def _key(version: str, name: str) -> str:
    return f"{SNAPSHOTS}/{version}/{name}"


def _read_pointer(objects: Objects) -> tuple[Pointer | None, str | None]:
    """The pointer and the etag to replace it by. The etag is asked for first: an older one only makes a conflict."""
    found = objects.stat(POINTER_KEY)
    if found is None:
        return None, None
    return read_pointer(objects.read(POINTER_KEY), f"{objects.uri}/{POINTER_KEY}"), found.etag


def _manifest(objects: Objects, version: str) -> Manifest:
    key = _key(version, MANIFEST)
    return read_manifest(objects.read(key), f"{objects.uri}/{key}")


def _swap(objects: Objects, pointer: Pointer, etag: str | None) -> None:
    try:
        objects.replace(POINTER_KEY, pointer.model_dump_json().encode(), etag)
    except ConflictError:
        raise ConflictError(
            f"{objects.uri}/{POINTER_KEY}: somebody else published at the same time; nothing was changed, try again"
        ) from None


def _delete_all_but(objects: Objects, versions: tuple[str, ...]) -> None:
    for found in list(objects.list(f"{SNAPSHOTS}/")):
        if found.key != POINTER_KEY and found.key.split("/")[1] not in versions:
            objects.delete(found.key)
    # On disk, what a killed upload left has a hidden name.
    folder = objects.local_path(SNAPSHOTS)
    for left in folder.iterdir() if folder else ():
        if left.is_dir() and left.name not in versions:
            shutil.rmtree(left, ignore_errors=True)
