"""From rows of a log to rows of the query log: time, who, route, fingerprint. The hot loop of ingest.

In: blocks of one file. Out: Parquet files by day, ready to be committed, and a tally of what was read, rejected and
passed over. A request that was asked before is not worked out again: what it becomes is remembered by its body.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import orjson

from prebake.request import DELIVERY_FIELDS, Bypass, last_user_text, read_request, user_turns
from prebake.routes import Route, Routes
from prebake.user import hash_user
from storage.data_file import DataFile
from storage.query_log import Arrivals, DayFiles, Kind, Request, Requests
from tasks.logs.alike import AlikeReader
from tasks.logs.blocks import Block, Lines, Rows, Span, too_long
from tasks.logs.presets import looks_at, preset_named
from tasks.logs.shapes import Shapes
from tasks.logs.times import parse_time
from tasks.logs.trouble import NotARequestError, RowError

if TYPE_CHECKING:  # the settings' module takes a worker longer to import than all it needs
    from prebake.settings import Columns, Settings

# Bounds of what one RowReader remembers: requests, by the bytes of their texts and keys, and users.
_TEXT_BYTES: Final = 64 * 2**20
_USERS: Final = 200_000


@dataclass
class Tally:
    """What became of the rows of a block or a file: ``rejects`` as (line, reason), ``files`` once they are whole."""

    rows: int = 0
    rejects: list[tuple[int, str]] = field(default_factory=list)
    bypassed: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    files: list[DataFile] = field(default_factory=list)

    def __iadd__(self, other: Tally) -> Tally:
        self.rows += other.rows
        self.rejects += other.rejects
        self.bypassed += other.bypassed
        self.passed_over += other.passed_over
        self.files += other.files
        return self


class Job(NamedTuple):
    """What every block of a run needs to know."""

    preset: str
    columns: Columns | None  # where the preset ``columns`` finds its values; None: another preset
    routes: tuple[Route, ...]
    aliases: Mapping[str, tuple[str, ...]]
    time_zone: str
    max_row_bytes: int
    salt: bytes
    latest_us: int


def job_of(settings: Settings, preset: str, salt: bytes, latest_us: int) -> Job:
    """The job of reading logs of this layout into the store with this salt."""
    return Job(
        preset,
        settings.ingest.columns if preset == "columns" else None,
        settings.routes,
        settings.aliases,
        settings.ingest.time_zone,
        settings.ingest.max_row_bytes,
        salt,
        latest_us,
    )


_Row = tuple[Request, int, str | None, int | None, int | None, int | None, str | None]


class RowReader:
    """Reads rows in the same way, block after block, whatever file they are of."""

    def __init__(self, job: Job) -> None:
        self._routes = Routes(job.routes, job.aliases)
        self._read = preset_named(job.preset, job.columns)
        self._zone = ZoneInfo(job.time_zone)
        self._max_row_bytes = job.max_row_bytes
        self._latest_us = job.latest_us
        self._salt = job.salt
        self._users: dict[str, int] = {}
        self._requests: dict[tuple[bytes, str | None, str], Request] = {}
        self._text_bytes = 0
        self._alike = AlikeReader(
            Shapes(self._read, looks_at(job.preset, job.columns)),
            self._worked_out,
            preset=job.preset,
            routes=self._routes,
            salt=job.salt,
            zone=self._zone,
            latest_us=job.latest_us,
            max_row_bytes=job.max_row_bytes,
        )

    def read(self, block: Block, into: DayFiles) -> Tally:
        """Read the rows of a block; some wait until there are more. Raises OSError if the disk refuses."""
        tally = Tally()
        rows = list[_Row]()
        for line, row in self._rows(block, tally):
            try:
                rows.append(self._row(row))
            except RowError as error:
                tally.rejects.append((line, str(error)))
            except NotARequestError as reason:
                tally.passed_over[str(reason)] += 1
        if rows:
            _add(*_columns(rows), into, tally)
        if self._alike.full:
            self._add_alike(into, tally)
        return tally

    def finish(self, into: DayFiles) -> Tally:
        """Write the rows that wait; returns them and all files. Raises OSError if the disk refuses."""
        tally = Tally()
        self._add_alike(into, tally)
        tally.files = into.finish()
        return tally

    def _add_alike(self, into: DayFiles, tally: Tally) -> None:
        for requests, arrivals in self._alike.rows():
            _add(requests, arrivals, into, tally)

    def _rows(self, block: Block, tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
        if isinstance(block, Rows):
            yield from block.rows
        elif isinstance(block, Lines | Span):
            yield from self._parsed(self._alike.read(block), tally)
        else:
            yield from enumerate(block.data.to_pylist(), block.first)

    def _parsed(self, lines: Iterable[tuple[int, bytes]], tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
        loads = orjson.loads
        most = self._max_row_bytes
        for line, text in lines:
            if len(text) > most and len(text.removesuffix(b"\n")) > most:
                tally.rejects.append((line, too_long(most)))
                continue
            try:
                row = loads(text)
            except orjson.JSONDecodeError as error:
                if text.strip():
                    tally.rejects.append((line, f"not valid JSON at character {error.pos + 1}: {error.msg}"))
                continue
            if isinstance(row, dict):
                yield line, row
            else:
                tally.rejects.append((line, "expected a JSON object"))

    def _row(self, row: dict[str, Any]) -> _Row:
        time, body, tenant, user, prompt_tokens, completion_tokens, cache, user_hash, namespace = self._read(row)
        ts_us = parse_time(time, self._zone)
        if ts_us > self._latest_us:
            raise RowError("the time lies in the future (ingest.max_future_hours)")
        request = self._request(body, tenant, namespace)
        if user is not None and (user_hash := self._users.get(user)) is None:
            user_hash = self._hash(user)
        return request, ts_us, tenant, user_hash, prompt_tokens, completion_tokens, cache

    def _hash(self, user: str) -> int:
        if len(self._users) >= _USERS:
            self._users.clear()
        hashed = self._users[user] = hash_user(user, self._salt)
        return hashed

    def _request(self, body: dict[str, Any], tenant: str | None, namespace: str) -> Request:
        if not DELIVERY_FIELDS.isdisjoint(body):
            body = {name: value for name, value in body.items() if name not in DELIVERY_FIELDS}
        try:
            key = (orjson.dumps(body), tenant, namespace)
        except TypeError:
            raise RowError("body: not what JSON can say") from None
        request = self._requests.get(key)
        if request is None:
            request = self._worked_out(body, tenant, namespace)
            self._text_bytes += 2 * len(key[0]) + 400
            if self._text_bytes > _TEXT_BYTES:
                self._requests.clear()
                self._text_bytes = 0
            self._requests[key] = request
        return request

    def _worked_out(self, body: dict[str, Any], tenant: str | None, namespace: str) -> Request:
        model = body.get("model")
        if not isinstance(model, str) or not model:
            raise RowError("no model: expected a text in model")
        if not isinstance(body.get("messages"), list):
            raise RowError("no messages: expected a chat request; is the preset right?")
        asked = read_request(body, self._routes, tenant, namespace)
        if isinstance(asked, Bypass):
            turns, prompt = _shown(body)
            return Request(Kind(None, None, asked.value, turns, model), None, None, prompt.encode())
        route, scope, fingerprint, request, turns, prompt = asked
        return Request(Kind(route.name, scope, None, turns, model), fingerprint, request, prompt.encode())


def _columns(rows: Sequence[_Row]) -> tuple[Requests, Arrivals]:
    request, *columns = zip(*rows, strict=True)
    places: dict[Request, int] = {}
    which = [places.setdefault(each, len(places)) for each in request]
    return Requests.of(list(places)), Arrivals.of(which, *columns)


def _add(requests: Requests, arrivals: Arrivals, into: DayFiles, tally: Tally) -> None:
    into.add(requests, arrivals)
    tally.rows += len(arrivals.which)
    counts = np.bincount(requests.kind[arrivals.which], minlength=len(requests.kinds)).tolist()
    for kind, count in zip(requests.kinds, counts, strict=True):
        if kind.bypass is not None:
            tally.bypassed[kind.bypass] += count


def _shown(body: dict[str, Any]) -> tuple[int, str]:
    """Turns and prompt of a request that is never answered from the store, as far as it has them."""
    try:
        return user_turns(body), last_user_text(body)
    except (AttributeError, KeyError, TypeError):  # a request of any shape: images, parts without text, no roles
        return 0, ""
