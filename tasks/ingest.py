"""Ingest: query logs of any layout become rows of the query log, each with route, scope and fingerprint.

In: files, folders, globs, s3:// addresses. Out: rows in the table ``query_log`` and, for what cannot be read, in
``rejects``. One file is one commit: after a kill or a full disk a file is in whole or not at all, and a file whose
content is in already is not read again, whatever its name.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa

from prebake.errors import InputError, RejectLimitError, SettingsError, StorageError
from prebake.progress import Progress
from prebake.settings import Settings
from prebake.stop import Stop
from prebake.tables import REJECTS
from storage.store import Store
from tasks.logs.blocks import Block, Reject
from tasks.logs.files import LogFile, digest_of, find_files
from tasks.logs.presets import PRESETS, columns_of
from tasks.logs.readers import read_blocks
from tasks.logs.rows import Tally, job_of
from tasks.logs.times import latest_us, zone_named
from tasks.logs.workers import SMALL_BYTES, Alone, Readers, WorkerLostError, Workers, cores


@dataclass(frozen=True)
class IngestReport:
    """What an ingest has read. ``rejected`` rows are in the table ``rejects``, at ``rejects_uri``."""

    files: int
    files_skipped: int  # their content was in already
    rows: int
    rejected: int
    bypassed: dict[str, int]  # rows the store will never answer, by reason
    passed_over: dict[str, int]  # rows that record no answered chat request, by reason
    days: tuple[date, ...]
    seconds: float
    rejects_uri: str


@dataclass
class _Totals:
    files: int = 0
    files_skipped: int = 0
    rows: int = 0
    rejected: int = 0
    bypassed: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    days: set[date] = field(default_factory=set)

    def add(self, tally: Tally) -> None:
        self.files += 1
        self.rows += tally.rows
        self.rejected += len(tally.rejects)
        self.bypassed += tally.bypassed
        self.passed_over += tally.passed_over
        self.days |= {file.day for file in tally.files}


def ingest(
    store: Store,
    settings: Settings,
    paths: Sequence[str],
    *,
    preset: str | None = None,
    progress: Progress,
    stop: Stop,
) -> IngestReport:
    """Read the files into the query log; ``preset`` is their layout (None: as the settings say).

    A file is known by its content: the same content is read once, under whatever name. So a file that has grown since
    is another file, and its old rows are counted a second time: give ingest files that are finished (rotated logs).

    Raises InputError for a path that names nothing, RejectLimitError (after all files are read and their good rows
    are kept) if more rows were rejected than ``ingest.max_reject_share``, StorageError if disk or store refuse, and
    Interrupted between two blocks, with the files before this one kept and nothing of this one.

    Memory: at most about 0.8 GB for each core; files that are compressed or in S3 take no more.
    """
    started = time.monotonic()
    files = find_files(paths, settings.store)
    run = _Run(store, settings, preset or settings.ingest.preset, progress, stop)
    totals = _Totals()
    with run:
        for file in files:
            tally = run.ingest(file)
            if tally is None:
                totals.files_skipped += 1
            else:
                totals.add(tally)
    report = IngestReport(
        totals.files,
        totals.files_skipped,
        totals.rows,
        totals.rejected,
        dict(totals.bypassed),
        dict(totals.passed_over),
        tuple(sorted(totals.days)),
        round(time.monotonic() - started, 3),
        store.rejects.uri,
    )
    _check_rejects(report, settings.ingest.max_reject_share)
    return report


def _check_rejects(report: IngestReport, most: float) -> None:
    share = report.rejected / max(1, report.rows + report.rejected)
    if share > most:
        raise RejectLimitError(
            f"{report.rejected} of {report.rows + report.rejected} rows ({share:.1%}) could not be read, more than "
            f"ingest.max_reject_share = {most:.1%}; the {report.rows} good rows are kept; see why: "
            'prebake sql "select file, line, reason from rejects order by day desc limit 20"'
        )


class _Run:
    """One ingest at work: who reads, and where files lie until they are whole."""

    def __init__(self, store: Store, settings: Settings, preset: str, progress: Progress, stop: Stop) -> None:
        if preset not in PRESETS:
            raise SettingsError(f"{preset!r} is no preset; expected one of {', '.join(PRESETS)}")
        zone_named(settings.ingest.time_zone)
        self._store = store
        self._settings = settings.ingest
        self._preset = preset
        self._progress = progress
        self._stop = stop
        self._now = datetime.now(UTC)
        until_us = latest_us(self._now, settings.ingest.max_future_hours)
        self._job = job_of(settings, preset, store.salt, until_us)
        self._alone = Alone(self._job)
        self._workers: Workers | None = None
        self._open = ExitStack()

    def __enter__(self) -> None:
        self._scratch = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="prebake-ingest-")))

    def __exit__(self, *_error: object) -> None:
        self._open.close()

    def ingest(self, file: LogFile) -> Tally | None:
        """Read one file and commit it; None if its content is in already."""
        self._stop.check()
        try:
            return self._ingest(file)
        except WorkerLostError:
            self._stop.check()  # the signal that stops us may have met a worker before it was in its own group
            raise

    def _ingest(self, file: LogFile) -> Tally | None:
        with (
            file.local(self._scratch) as local,
            tempfile.TemporaryDirectory(dir=self._scratch) as folder,
        ):
            size = _size(local, file.name)
            readers = self._readers(size)
            source = digest_of(local, size)
            if self._store.query_log.has(_once(source)):
                return None
            tally = self._read(file, local, size, readers, Path(folder), source)
            self._keep(file, tally, source)
        return tally

    def _readers(self, size: int) -> Readers:
        if size < SMALL_BYTES or cores() < 2:
            return self._alone
        if self._workers is None:
            self._workers = self._open.enter_context(Workers(self._job))
        return self._workers

    def _read(self, file: LogFile, local: Path, size: int, readers: Readers, folder: Path, source: str) -> Tally:
        total = Tally()
        with self._progress.track(f"ingest {Path(file.name).name}", size) as advance:
            found = read_blocks(
                local,
                size,
                max_row_bytes=self._settings.max_row_bytes,
                columns=columns_of(self._preset),
                advance=advance,
            )
            try:
                for tally in readers.read(_blocks(found, total), folder, source):
                    self._stop.check()
                    total += tally
            except OSError as error:
                raise StorageError(
                    f"{folder}: cannot be written: {error.strerror or error}; nothing of {file.name} is in; make room, "
                    "or set TMPDIR to a folder that has some"
                ) from error
        return total

    def _keep(self, file: LogFile, tally: Tally, source: str) -> None:
        """Rejects first: the commit of the rows is what says that the file is in."""
        if tally.rejects:
            once = f"{_once(source)}/{self._preset}"
            self._store.rejects.append(_rejects(file.name, tally, source, self._now.date()), once=once)
        if tally.rows:
            self._store.query_log.append_files(tally.files, once=_once(source))


def _blocks(found: Iterator[Block | Reject], total: Tally) -> Iterator[Block]:
    """The blocks; the rejects between them are added to ``total``."""
    for block in found:
        if isinstance(block, Reject):
            total.rejects.append((block.line, block.reason))
        else:
            yield block


def _once(source: str) -> str:
    return f"ingest/{source}"


def _size(local: Path, name: str) -> int:
    try:
        return local.stat().st_size
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error


def _rejects(name: str, tally: Tally, source: str, day: date) -> pa.Table:
    lines, reasons = zip(*sorted(tally.rejects), strict=True)
    count = len(lines)
    columns = {
        "day": [day] * count,
        "source": [source] * count,
        "file": [name] * count,
        "line": lines,
        "reason": reasons,
    }
    return pa.table({c.name: pa.array(columns[c.name], c.type) for c in REJECTS.columns}, schema=REJECTS.schema)
