"""Which files a user means: paths, folders, globs and s3:// addresses, each opened as a file on local disk."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from hashlib import sha256
from pathlib import Path

from prebake.errors import InputError, StorageError
from prebake.settings import Store
from storage.objects import S3_SCHEME, Objects, open_objects

_WILD = "*?["
_CHUNK = 1 << 20


@dataclass(frozen=True)
class LogFile:
    """One file of a log, by the name the user knows it by."""

    name: str
    objects: Objects | None = None
    key: str = ""

    @contextmanager
    def local(self, scratch: Path) -> Iterator[Path]:
        """The file on local disk for as long as the block lasts; fetched into ``scratch`` if it is in S3."""
        if self.objects is None:
            yield Path(self.name)
            return
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            # The file's own ending says what is in it, where its first bytes do not.
            copy = Path(folder) / Path(self.key).name
            self.objects.download(self.key, copy)
            yield copy


def find_files(paths: Sequence[str], store: Store) -> list[LogFile]:
    """The files that the paths name, each once, those of one path in the order of their names.

    Folders are searched to their ends; names beginning with ``.`` or ``_`` are left out of folders and globs.
    Raises InputError for a path that names nothing.
    """
    found: dict[str, LogFile] = {}
    for path in paths:
        files = _in_s3(path, store) if path.startswith(S3_SCHEME) else _on_disk(path)
        if not files:
            raise InputError(f"{path}: no such file, and no folder or glob with files in it; check ingest.paths")
        found |= {file.name: file for file in files}
    return list(found.values())


def _on_disk(path: str) -> list[LogFile]:
    here = Path(path)
    if here.is_file():
        return [LogFile(path)]
    if here.is_dir():
        names = [str(file) for file in here.rglob("*") if file.is_file() and _shown(str(file.relative_to(here)))]
    else:
        names = [name for name in glob.glob(path, recursive=True) if Path(name).is_file() and _shown(Path(name).name)]
    return [LogFile(name) for name in sorted(names)]


def _shown(name: str) -> bool:
    return not any(part.startswith((".", "_")) for part in Path(name).parts)


def _in_s3(path: str, store: Store) -> list[LogFile]:
    bucket, _, pattern = path.removeprefix(S3_SCHEME).partition("/")
    objects = open_objects(store.model_copy(update={"root": f"{S3_SCHEME}{bucket}"}))
    wild = min((pattern.find(mark) for mark in _WILD if mark in pattern), default=-1)
    prefix = pattern if wild < 0 else pattern[:wild]
    keys = [info.key for info in objects.list(prefix)]
    if wild >= 0:
        keys = [key for key in keys if fnmatchcase(key, pattern) and _shown(key[len(prefix) :])]
    else:
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        keys = [key for key in keys if key == pattern or (key.startswith(folder) and _shown(key[len(folder) :]))]
    return [LogFile(f"{S3_SCHEME}{bucket}/{key}", objects, key) for key in sorted(keys) if not key.endswith("/")]


def digest_of(file: Path, size: int) -> str:
    """32 hexadecimal digits of SHA-256 over the first ``size`` bytes: one name for one content."""
    digest = sha256()
    for chunk in raw_chunks(file, size):
        digest.update(chunk)
    return digest.hexdigest()[:32]


def raw_chunks(file: Path, size: int, chunk: int = _CHUNK) -> Iterator[bytes]:
    """The first ``size`` bytes, piece by piece; a file that grows meanwhile is read as it was."""
    try:
        with file.open("rb") as handle:
            for data in iter(partial(handle.read, chunk), b""):
                yield data[:size]
                size -= len(data)
                if size <= 0:
                    return
    except OSError as error:
        raise StorageError(f"{file}: cannot be read: {error.strerror}") from error
