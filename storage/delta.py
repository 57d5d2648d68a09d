"""One Delta table with a schema from ``prebake/tables.py``: on disk or in S3, read by DuckDB, Polars, Spark and Athena.

In: Arrow tables or readers. Out: atomic versions of the table. Readers see a commit whole or not at all, several
processes may write at once, and every version can be gone back to until :meth:`DeltaTable.compact` lets it go.
"""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from typing import Final
from urllib.parse import unquote

import deltalake
import pyarrow as pa
import pyarrow.dataset
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from prebake.errors import ConflictError, StorageError
from prebake.tables import Table
from storage.data_file import DataFile
from storage.objects import TABLES, Objects
from storage.s3_refusal import explained

_TRIES: Final = 20
_UPLOADS: Final = 8  # at once: S3 and fsync take their time, not ours
_KEEP_HOURS: Final = 7 * 24
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_TREE: Final = re.compile(r"\s*(?:->|↳)\s*")


class DeltaTable:
    """A table that the first append creates. Every method raises StorageError when disk or service refuse."""

    def __init__(self, table: Table, objects: Objects) -> None:
        self.table = table
        self.uri = objects.table_uri(table.name)
        self._objects = objects

    def append(self, data: pa.Table | pa.RecordBatchReader, *, once: str | None = None) -> bool:
        """Add the rows in one commit; returns whether they were added.

        An append of the same ``once`` is done at most once, whoever else tries at the same time: False means it was
        there already. A reader is consumed batch by batch. The idea is Delta's application transaction (Delta
        transaction log protocol, "Transaction Identifiers").
        """
        with self._sentences("append"):
            for attempt in range(_TRIES):
                handle = self._open() or self._create()
                if once is not None and handle.transaction_version(once) is not None:
                    return False
                try:
                    deltalake.write_deltalake(
                        handle,
                        self._conform(data),
                        mode="append",
                        writer_properties=_writer(self.table),
                        commit_properties=_commit(once),
                    )
                except CommitFailedError:
                    if isinstance(data, pa.RecordBatchReader):  # consumed: only the other one's commit can save it
                        return self._settled(once)
                    time.sleep(random.uniform(0, 0.02 * 2 ** min(attempt, 6)))
                else:
                    return True
        raise ConflictError(f"{self.uri}: {_TRIES} appends lost against other writers; run it again")

    def append_files(self, files: Sequence[DataFile], *, once: str) -> bool:
        """Add files that are written already, as :meth:`append` adds rows; returns whether they were added."""
        with self._sentences("append"):
            if self.has(once):
                return False
            # Files of a commit that failed stay for compact() to find: the commit may have arrived all the same.
            return self._add_files(self._upload(files), once)

    def has(self, once: str) -> bool:
        """Whether something was appended by that name."""
        with self._sentences("read"):
            handle = self._open()
            return handle is not None and handle.transaction_version(once) is not None

    def replace_days(self, data: pa.Table | pa.RecordBatchReader, days: Collection[date]) -> None:
        """Put these rows in place of all rows of these days, in one commit; no rows: the days become empty.

        Raises ConflictError, with nothing changed, if another process wrote the same days meanwhile.
        """
        if not days:
            return
        quoted = ", ".join(f"'{day.isoformat()}'" for day in sorted(days))
        with self._sentences("replace"):
            handle = self._open() or self._create()
            try:
                deltalake.write_deltalake(
                    handle,
                    self._conform(data),
                    mode="overwrite",
                    predicate=f"day in ({quoted})",
                    writer_properties=_writer(self.table),
                    commit_properties=_commit(None),
                )
            except CommitFailedError:
                raise ConflictError(f"{self.uri}: another process wrote the same days; run it again") from None

    def replace_files(self, files: Sequence[DataFile], days: Collection[date]) -> None:
        """Put files that are written already in place of all rows of these days, as :meth:`replace_days` puts rows."""
        if not days:
            return
        named = sorted(day.isoformat() for day in days)
        with self._sentences("replace"):
            before = self._files_of(self._open() or self._create(), named)
            actions = self._upload(files)
            for attempt in range(_TRIES):
                handle = self._open() or self._create()
                if self._files_of(handle, named) != before:
                    break
                try:
                    handle.create_write_transaction(
                        actions,
                        "overwrite",
                        self.table.schema,
                        partition_by=list(self.table.partition_by),
                        partition_filters=[("day", "in", named)],
                        commit_properties=_commit(None),
                    )
                except CommitFailedError:  # another writer was first: with the same days, or with others?
                    time.sleep(random.uniform(0, 0.02 * 2 ** min(attempt, 6)))
                else:
                    return
        raise ConflictError(f"{self.uri}: another process wrote the same days; run it again")

    def scan(self) -> pa.dataset.Dataset:
        """The newest version as a dataset: DuckDB and pyarrow read only the days and columns they need."""
        with self._sentences("read"):
            handle = self._open()
            if handle is None:
                return pa.dataset.dataset(self.table.schema.empty_table())
            return handle.to_pyarrow_dataset(schema=self.table.schema)

    def files(self) -> list[str]:
        """Absolute addresses of the Parquet files of the newest version."""
        with self._sentences("read"):
            handle = self._open()
            files = handle.file_uris() if handle else []
        # On disk they come as URLs without a scheme: an umlaut or a blank of the path is %-encoded.
        return sorted(files if "://" in self.uri else map(unquote, files))

    def days(self) -> list[date]:
        """The days that have rows, in order."""
        with self._sentences("read"):
            handle = self._open()
            partitions = handle.partitions() if handle else []
        return sorted({date.fromisoformat(str(partition["day"])) for partition in partitions})

    def version(self) -> int | None:
        """The newest version's number; None before the first append."""
        with self._sentences("read"):
            handle = self._open()
            return handle.version() if handle else None

    def restore(self, version: int) -> None:
        """Make the rows what they were at that version, as a new version; what was appended once stays appended."""
        with self._sentences(f"restore version {version} of"):
            handle = self._open()
            if handle is None:
                raise StorageError(f"{self.uri}: no table there yet, nothing to restore")
            handle.restore(version)

    def compact(self) -> None:
        """Merge small files; delete those, older than seven days, that no version of these days needs."""
        with self._sentences("compact"):
            handle = self._open()
            if handle is None:
                return
            handle.optimize.compact(writer_properties=_writer(self.table))
            handle.vacuum(retention_hours=_KEEP_HOURS, dry_run=False, full=True)

    def _open(self) -> deltalake.DeltaTable | None:
        try:
            return deltalake.DeltaTable(self.uri, storage_options=self._objects.table_options())
        except TableNotFoundError:
            return None

    def _upload(self, files: Sequence[DataFile]) -> list[AddAction]:
        """Put the files beside the table; a commit of these actions makes them part of it."""
        with ThreadPoolExecutor(_UPLOADS) as pool:
            return list(pool.map(self._upload_one, files))

    def _upload_one(self, file: DataFile) -> AddAction:
        path = f"day={file.day.isoformat()}/{uuid.uuid4().hex}.parquet"
        self._objects.upload(f"{TABLES}/{self.table.name}/{path}", file.path)
        statistics = f'{{"numRecords":{file.rows}}}'
        now_ms = int(time.time() * 1000)
        return AddAction(path, file.path.stat().st_size, {"day": file.day.isoformat()}, now_ms, True, statistics)

    def _files_of(self, handle: deltalake.DeltaTable, days: Sequence[str]) -> set[str]:
        return {uri for uri in handle.file_uris() if any(f"/day={day}/" in uri for day in days)}

    def _add_files(self, actions: Sequence[AddAction], once: str) -> bool:
        for attempt in range(_TRIES):
            handle = self._open() or self._create()
            if handle.transaction_version(once) is not None:
                return False
            try:
                handle.create_write_transaction(
                    list(actions),
                    "append",
                    self.table.schema,
                    partition_by=list(self.table.partition_by),
                    commit_properties=_commit(once),
                )
            except CommitFailedError:
                time.sleep(random.uniform(0, 0.02 * 2 ** min(attempt, 6)))
            else:
                return True
        raise ConflictError(f"{self.uri}: {_TRIES} appends lost against other writers; run it again")

    def _create(self) -> deltalake.DeltaTable:
        try:
            return deltalake.DeltaTable.create(
                self.uri,
                self.table.schema,
                mode="ignore",
                partition_by=list(self.table.partition_by),
                name=self.table.name,
                description=self.table.meaning,
                storage_options=self._objects.table_options(),
            )
        except DeltaError:
            handle = self._open()  # else another process created it first
            if handle is None:
                raise
            return handle

    def _conform(self, data: pa.Table | pa.RecordBatchReader) -> pa.Table | pa.RecordBatchReader:
        names = self.table.schema.names
        if isinstance(data, pa.Table):
            return data.select(names).cast(self.table.schema)
        batches = (batch.select(names).cast(self.table.schema) for batch in data)
        return pa.RecordBatchReader.from_batches(self.table.schema, batches)

    def _settled(self, once: str | None) -> bool:
        handle = self._open()
        if once is not None and handle is not None and handle.transaction_version(once) is not None:
            return False
        raise ConflictError(f"{self.uri}: another writer was first; run it again")

    @contextmanager
    def _sentences(self, what: str) -> Iterator[None]:
        try:
            yield
        except (DeltaError, OSError) as error:
            raise StorageError(f"{self.uri}: cannot {what} the table: {explained(_reason(error))}") from error


def _reason(error: Exception) -> str:
    """One line of deltalake's tree of causes, without the rows it may show: rows are people's prompts."""
    told = str(error).split("Preview of invalid data")[0]
    causes = (" ".join(cause.split()) for cause in _TREE.split(_COLOUR.sub("", told)))
    return ": ".join(cause.rstrip(":.") for cause in causes if cause)


def _writer(table: Table) -> deltalake.WriterProperties:
    """How its files are written.

    The writer holds open one file for each day of the data, each with these buffers for each column: small ones keep
    an append over a month of log at some hundreds of MB, however many rows it has.
    """
    return deltalake.WriterProperties(
        compression="ZSTD",
        max_row_group_size=table.rows_together,
        write_batch_size=256,
        data_page_size_limit=2**17,
        dictionary_page_size_limit=2**17,
    )


def _commit(once: str | None) -> deltalake.CommitProperties:
    transactions = [deltalake.Transaction(once, 1)] if once is not None else None
    return deltalake.CommitProperties(max_commit_retries=100, app_transactions=transactions)
