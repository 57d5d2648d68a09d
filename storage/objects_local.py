"""Objects as files under one folder: written beside, synced, then renamed, so that a kill leaves the old or the new."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from prebake.errors import ConflictError, StorageError
from storage.objects import ObjectInfo, Objects, check_key

_LOCK: Final = ".replace.lock"
_REMEDY: Final = {
    errno.ENOSPC: "free space or point store.root at a larger disk",
    errno.EDQUOT: "free space within the quota or point store.root elsewhere",
    errno.EACCES: "let this user write there or point store.root elsewhere",
    errno.EPERM: "let this user write there or point store.root elsewhere",
    errno.EROFS: "mount it writable or point store.root elsewhere",
}


class LocalObjects(Objects):
    """Objects under a folder, which the first write makes."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.uri = str(self._root)

    def read(self, key: str) -> bytes:
        """The file's bytes."""
        with self._sentences(key, "cannot be read"):
            return self._path(key).read_bytes()

    def write(self, key: str, data: bytes) -> str:
        """Replace the file by rename."""
        return self._put(key, lambda file: file.write(data), os.replace)

    def create(self, key: str, data: bytes, *, mode: int = 0o666) -> str:
        """Link the finished file to its name: the file system lets exactly one of two do that."""
        return self._put(key, lambda file: file.write(data), os.link, mode)

    def replace(self, key: str, data: bytes, etag: str | None) -> str:
        """Compare and rename under a lock that all processes on this folder share and that dies with its holder."""
        if etag is None:
            return self.create(key, data)
        with self._locked():
            found = self.stat(key)
            if found is None or found.etag != etag:
                raise ConflictError(f"{self._path(key)}: changed by somebody else meanwhile; read it again")
            return self.write(key, data)

    def stat(self, key: str) -> ObjectInfo | None:
        """Size and etag from the file's inode."""
        path = self._path(key)
        with self._sentences(key, "cannot be looked at"):
            try:
                return None if path.is_dir() else _info(key, path.stat())
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Walk the folders, in the order S3 would list the keys."""
        with self._sentences(prefix, "cannot be listed"):
            yield from self._walk(prefix.rpartition("/")[0], prefix)

    def delete(self, key: str) -> None:
        """Remove the file, and the folders it leaves empty."""
        path = self._path(key)
        with self._sentences(key, "cannot be deleted"):
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self._root or not _remove_empty(folder):
                    return

    def upload(self, key: str, file: Path) -> None:
        """Copy the file in."""
        with self._sentences(key, "cannot be written"), file.open("rb") as source:
            self._put(key, lambda target: shutil.copyfileobj(source, target, 2**20), os.replace)

    def download(self, key: str, file: Path) -> None:
        """Copy the file out."""
        with self._sentences(key, f"cannot be copied to {file}"):
            shutil.copyfile(self._path(key), file)

    def local_path(self, key: str) -> Path | None:
        """The file itself."""
        return self._path(key)

    def table_options(self) -> dict[str, str]:
        """None are needed."""
        return {}

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _put(
        self,
        key: str,
        fill: Callable[[IO[bytes]], object],
        publish: Callable[[Path, Path], None],
        mode: int = 0o666,
    ) -> str:
        path = self._path(key)
        name = path.parent / f".{secrets.token_hex(8)}.new"
        with self._sentences(key, "cannot be written"):
            try:
                with _open_new(name, mode) as beside:
                    fill(beside)
                    beside.flush()
                    # The kernel's own stamps are some milliseconds coarse: two writes in one tick must differ.
                    now = time.time_ns()
                    os.utime(beside.fileno(), ns=(now, now))
                    os.fsync(beside.fileno())
                    etag = _info(key, os.fstat(beside.fileno())).etag
                publish(name, path)
                _sync_folder(path.parent)
            except FileExistsError:
                raise ConflictError(f"{path}: is there already; somebody else was first") from None
            finally:
                name.unlink(missing_ok=True)
        return etag

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._sentences(_LOCK, "cannot be locked"):
            self._root.mkdir(parents=True, exist_ok=True)
            with (self._root / _LOCK).open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        try:
            entries = sorted(os.scandir(self._root / folder), key=lambda e: f"{e.name}/" if e.is_dir() else e.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            key = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                    yield from self._walk(key, prefix)
            elif key.startswith(prefix):
                try:
                    yield _info(key, entry.stat())
                except FileNotFoundError:  # deleted since
                    continue

    @contextmanager
    def _sentences(self, key: str, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = _REMEDY.get(error.errno or 0)
            reason = error.strerror or str(error)
            raise StorageError(f"{self._root / key}: {what}: {reason}{f'; {remedy}' if remedy else ''}") from error


def _info(key: str, stat: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, stat.st_size, f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}")


def _open_new(name: Path, mode: int) -> IO[bytes]:
    """A new file of that name; a folder that a delete just removed is made again."""
    while True:
        name.parent.mkdir(parents=True, exist_ok=True)
        try:
            return os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")
        except FileNotFoundError:
            continue


def _remove_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
