"""Objects in S3 or a compatible service: conditional puts decide between concurrent writers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from prebake.errors import ConflictError, SettingsError, StorageError
from storage.objects import S3_SCHEME, ObjectInfo, Objects, check_key
from storage.s3_refusal import explained

_CONFIG: Final = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "max_attempts": 5})
_TABLE_OPTIONS: Final = {
    "aws_conditional_put": "etag",
    "connect_timeout": "5s",
    "timeout": "60s",
    "max_retries": "5",
    "retry_timeout": "60s",
}
_MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound"})
# 412: the condition does not hold; 409: another conditional put on the key won while this one ran.
_CONFLICT: Final = frozenset({"412", "409", "PreconditionFailed", "ConditionalRequestConflict"})


class S3Objects(Objects):
    """Objects under a bucket and prefix. Credentials, region and profile come from boto3's own chain."""

    def __init__(self, root: str, *, endpoint_url: str = "") -> None:
        self._bucket, _, prefix = root.removeprefix(S3_SCHEME).partition("/")
        if not self._bucket:
            raise SettingsError(f"store.root: {root!r} names no bucket; expected s3://bucket/prefix")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.uri = f"{S3_SCHEME}{self._bucket}/{self._prefix}".rstrip("/")
        self._endpoint_url = endpoint_url
        self._bucket_seen = False
        self._session = boto3.session.Session()
        with self._sentences(""):
            self._s3 = self._session.client("s3", endpoint_url=endpoint_url or None, config=_CONFIG)

    def read(self, key: str) -> bytes:
        """Get the object."""
        with self._sentences(key):
            body: bytes = self._s3.get_object(**self._address(key))["Body"].read()
            return body

    def write(self, key: str, data: bytes) -> str:
        """Put the object."""
        return self._put(key, data)

    def create(self, key: str, data: bytes) -> str:
        """Put with ``If-None-Match: *``."""
        return self._put(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, etag: str | None) -> str:
        """Put with ``If-Match``."""
        if etag is None:
            return self.create(key, data)
        return self._put(key, data, missing_is_conflict=True, IfMatch=etag)

    def stat(self, key: str) -> ObjectInfo | None:
        """Ask for the object's head."""
        with self._sentences(key):
            try:
                head = self._s3.head_object(**self._address(key))
            except ClientError as error:
                if _code(error) in _MISSING:
                    self._check_bucket()
                    return None
                raise
        return ObjectInfo(key, head["ContentLength"], head["ETag"])

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List page by page."""
        pages = self._s3.get_paginator("list_objects_v2")
        with self._sentences(prefix):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for found in page.get("Contents", ()):
                    yield ObjectInfo(found["Key"].removeprefix(self._prefix), found["Size"], found["ETag"])

    def delete(self, key: str) -> None:
        """Delete the object."""
        with self._sentences(key):
            self._s3.delete_object(**self._address(key))

    def upload(self, key: str, file: Path) -> None:
        """Put the file, in several parts if it is large."""
        with self._sentences(key), file.open("rb") as source:
            self._s3.upload_fileobj(source, **self._address(key))

    def download(self, key: str, file: Path) -> None:
        """Get the object into the file."""
        with self._sentences(key), file.open("wb") as target:
            self._s3.download_fileobj(Fileobj=target, **self._address(key))

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002 - the interface's signature
        """Never on local disk."""
        return None

    def table_options(self) -> dict[str, str]:
        """What boto3 found, handed on, so that both ways to S3 are the same user in the same region."""
        options = _TABLE_OPTIONS | {"aws_region": self._s3.meta.region_name or "us-east-1"}
        if self._endpoint_url:
            options["aws_endpoint"] = self._endpoint_url
            options["aws_allow_http"] = str(self._endpoint_url.startswith("http://")).lower()
        with self._sentences(""):
            credentials = self._session.get_credentials()
            frozen = credentials.get_frozen_credentials() if credentials else None
        if frozen:
            options |= {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
            if frozen.token:
                options["aws_session_token"] = frozen.token
        return options

    def _address(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _check_bucket(self) -> None:
        """Raise StorageError where there is no such bucket: of an object's head, S3 says only that there is none."""
        if self._bucket_seen:
            return
        try:
            self._s3.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            if _code(error) in _MISSING:
                raise StorageError(f"{self.uri}: {explained('S3 refused: NoSuchBucket')}") from None
        self._bucket_seen = True  # who may not ask for the bucket's head may still use it

    def _put(self, key: str, data: bytes, *, missing_is_conflict: bool = False, **condition: str) -> str:
        with self._sentences(key):
            try:
                etag: str = self._s3.put_object(**self._address(key), Body=data, **condition)["ETag"]
            except ClientError as error:
                if _code(error) in _CONFLICT or (missing_is_conflict and _code(error) in _MISSING):
                    raise ConflictError(
                        f"{self.uri}/{key}: changed by somebody else meanwhile; read it again"
                    ) from None
                raise
            return etag

    @contextmanager
    def _sentences(self, key: str) -> Iterator[None]:
        place = f"{self.uri}/{key}"
        try:
            yield
        except ClientError as error:
            if _code(error) in _MISSING:
                raise StorageError(f"{place}: there is no such object") from None
            raise StorageError(f"{place}: S3 refused: {explained(str(error))}") from error
        except BotoCoreError as error:
            raise StorageError(f"{place}: S3 cannot be used: {explained(str(error))}") from error
        except OSError as error:
            raise StorageError(f"{place}: {error.filename}: {error.strerror}") from error


def _code(error: ClientError) -> str:
    code: str = error.response.get("Error", {}).get("Code", "")
    return code
