"""Bytes by key, on local disk or in S3: what every other part of the store stands on.

In: keys such as ``snapshots/current`` and their bytes. Out: the bytes, and an etag that changes with every write, by
which exactly one of several concurrent writers wins. Each object is read and written as a whole.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prebake.errors import SettingsError, StorageError
from prebake.settings import Store

S3_SCHEME: Final = "s3://"
TABLES: Final = "tables"
# deltalake 1.6 decodes %XX in local paths once too often and panics on the others.
_UNFIT: Final = re.compile(r"%[0-9A-Fa-f]{2}|[\[\]|^\\]|[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says of one object; ``size`` in bytes."""

    key: str
    size: int
    etag: str


class Objects(ABC):
    """One store of objects. Every method raises StorageError when disk or service refuse.

    A key that is changed by :meth:`replace` must be changed by nothing else, or the comparison means nothing.
    """

    uri: str
    """Where the store is, as people write it: a folder or ``s3://bucket/prefix``."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The object's bytes; StorageError if there is none."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> str:
        """Put the object there whatever was there before; readers see all of it or none. Returns its etag."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> str:
        """Put the object there if there is none; returns its etag. Raises ConflictError if there is one."""

    @abstractmethod
    def replace(self, key: str, data: bytes, etag: str | None) -> str:
        """Put the object there if it still has that etag (None: if there is none); returns its new etag.

        Raises ConflictError if somebody else changed it first.
        """

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo | None:
        """Size and etag without the bytes; None if there is no such object."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects whose keys begin with that text, in the order of their keys."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; nothing happens if there is none."""

    @abstractmethod
    def upload(self, key: str, file: Path) -> None:
        """Put a local file's bytes there, in bounded memory."""

    @abstractmethod
    def download(self, key: str, file: Path) -> None:
        """Write the object's bytes to a local file, in bounded memory."""

    @abstractmethod
    def local_path(self, key: str) -> Path | None:
        """Where the object is (or would be) on local disk; None if the store is not on local disk."""

    @abstractmethod
    def table_options(self) -> dict[str, str]:
        """Storage options for ``deltalake``, with credentials as they are now."""

    def table_uri(self, name: str) -> str:
        """Where the Delta table of that name is."""
        return f"{self.uri}/{TABLES}/{check_key(name)}"


def open_objects(store: Store) -> Objects:
    """The object store the settings name; nothing is created or contacted until it is used."""
    if store.root.startswith(S3_SCHEME):
        from storage.objects_s3 import S3Objects  # boto3 costs 0.3 s to import; a local store needs none of it

        return S3Objects(store.root, endpoint_url=store.s3_endpoint_url)
    if "://" in store.root:
        raise SettingsError(
            f"store.root: {store.root!r} is neither a folder nor s3://bucket/prefix; set one of the two"
        )
    if found := _UNFIT.search(store.root):
        raise SettingsError(
            f"store.root: {store.root!r} has {found[0]!r} in it, which Delta tables cannot have in their address; "
            "choose another folder"
        )
    from storage.objects_local import LocalObjects

    return LocalObjects(Path(store.root))


def check_key(key: str) -> str:
    """The key itself, if it is one: parts of printable text joined by ``/``, none empty or beginning with a dot.

    Raises StorageError, so that no key ever leads out of the store or to its temporary files.
    """
    if not all(part and not part.startswith(".") for part in key.split("/")) or not key.isprintable() or "\\" in key:
        raise StorageError(f"{key!r} is no key: expected names joined by '/', none empty or beginning with '.'")
    return key
