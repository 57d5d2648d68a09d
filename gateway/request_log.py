"""The log that feeds the next night: each chat request or a sample, without people, with answers only if asked for.

In: rows, from the event loop, never waiting. Out: immutable Parquet segments ``gateway-log/day=.../*.parquet`` with the
columns of GATEWAY_LOG, written by a thread every few seconds. Memory: at most ``max_rows`` rows and ``max_bytes`` of
bodies, plus one segment being written; what does not fit is dropped and counted.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import repeat
from random import random
from typing import Any, NamedTuple

import orjson

from gateway.metrics import Metrics
from gateway.segments import Segments
from prebake.settings import Gateway
from prebake.tables import GATEWAY_LOG
from prebake.user import hash_user
from storage.objects import Objects

FOLDER = "gateway-log"
# Fields that name people; the fingerprint does not contain them.
PEOPLE_FIELDS = frozenset({"user", "safety_identifier", "metadata", "prompt_cache_key"})

# A quote inside a JSON string is escaped, so that these can only match a key, never a text.
_PROMPT_TOKENS = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,12})')
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens"\s*:\s*(\d{1,12})')

logger = logging.getLogger(__name__)


class LogRow(NamedTuple):
    """One request as the hot path hands it over.

    ``tail`` is a hit's message, or the end of the upstream's answer, for its token counts; ``whole``: it is all of it.
    """

    ts: float
    tenant: str | None
    namespace: str | None
    user: str | None
    body: bytes
    people: bool
    cache: str
    reason: str | None
    status: int
    prompt_tokens: int | None
    completion_tokens: int | None
    tail: bytes
    whole: bool


class RequestLog:
    """A bounded queue and the thread that empties it. Rows are added from one thread only."""

    def __init__(self, objects: Objects, salt: bytes, options: Gateway, metrics: Metrics) -> None:
        self._segments = Segments(objects, FOLDER, GATEWAY_LOG.schema)
        self._salt = salt
        self._flush_s = options.log_flush_s
        self._max_rows = options.log_queue
        self._max_bytes = int(options.log_queue_mb * 1e6)
        self._segment_rows = options.log_segment_rows
        self._wake_at = min(self._segment_rows, self._max_rows // 2)
        self._share = options.log_sample
        self._answers = options.log_answers
        self._metrics = metrics
        self._queue: deque[LogRow] = deque()
        self._segment: list[LogRow] = []
        # One thread writes each pair, so that no lock stands on the request's path.
        self._rows_in = self._bytes_in = 0
        self._rows_out = self._bytes_out = 0
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="prebake-log", daemon=True)

    def start(self) -> None:
        """Start writing."""
        self._thread.start()

    def add(self, row: LogRow) -> None:
        """Queue a row, or drop and count it if the queue is full. Never waits, never raises.

        Where the log is a sample, each request has the same chance, by chance and not by a digest of what it asks: that
        would keep all requests for an answer or none.
        """
        if self._share < 1 and random() >= self._share:
            return
        size = _size(row)
        if (
            self._rows_in - self._rows_out >= self._max_rows
            or self._bytes_in - self._bytes_out + size > self._max_bytes
        ):
            self._metrics.log_dropped.inc()
            return
        self._rows_in += 1
        self._bytes_in += size
        self._queue.append(row)
        if len(self._queue) >= self._wake_at:
            self._wake.set()

    def close(self) -> None:
        """Write what is queued and stop."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(self._flush_s)
            self._wake.clear()
            if not self._flush():
                self._stop.wait(self._flush_s)
        if not self._flush():
            logger.error("request log: %d rows could not be written and are lost", self._rows_in - self._rows_out)

    def _flush(self) -> bool:
        """Write all that is queued now, in segments; False if that failed: the rows wait for the next time.

        What comes meanwhile waits too: under load there would be no end to segments of a few rows.
        """
        queued = len(self._segment) + len(self._queue)
        while queued > 0:
            self._fill_segment()
            try:
                self._segments.write(datetime.fromtimestamp(self._segment[0].ts, UTC), self._columns())
            except Exception as error:  # noqa: BLE001 - full disk, S3, whatever: requests must go on
                if not self._failing:
                    logger.error("request log: cannot be written, rows wait in memory: %s", error)
                self._failing = True
                return False
            self._failing = False
            self._metrics.log_rows.inc(len(self._segment))
            self._rows_out += len(self._segment)
            self._bytes_out += sum(map(_size, self._segment))
            queued -= len(self._segment)
            self._segment = []
        return True

    def _fill_segment(self) -> None:
        while self._queue and len(self._segment) < self._segment_rows:
            self._segment.append(self._queue.popleft())

    def _columns(self) -> Iterable[Sequence[Any]]:
        """The segment in the columns of GATEWAY_LOG."""
        rows = list(self._rows())
        times, tenants, namespaces, users, bodies, _, caches, reasons, statuses, prompts, completions, tails, wholes = (
            zip(*rows, strict=True) if rows else repeat((), len(LogRow._fields))
        )
        return (
            [int(at * 1e6) for at in times],
            tenants,
            namespaces,
            [None if user is None else hash_user(user, self._salt) for user in users],
            bodies,
            caches,
            reasons,
            prompts,
            completions,
            statuses,
            [self._share] * len(rows),
            [_text(tail) if self._answers and whole else None for tail, whole in zip(tails, wholes, strict=True)],
        )

    def _rows(self) -> Iterator[LogRow]:
        for number, row in enumerate(self._segment):
            if number % 1000 == 0:
                time.sleep(0)  # let the event loop have the interpreter: a request must not wait for its log
            try:
                yield _finished(row)
            except (ValueError, TypeError, RecursionError):  # JSON that can be read but not written: nested too deep
                self._metrics.log_dropped.inc()


def _size(row: LogRow) -> int:
    return len(row.body) + len(row.tail)


def _finished(row: LogRow) -> LogRow:
    """The row without the fields that name people, and with the token counts that the upstream gave."""
    if row.people:
        row = row._replace(body=without_people(row.body))
    if row.tail and row.cache != "hit":
        prompt_tokens, completion_tokens = _last(_PROMPT_TOKENS, row.tail), _last(_COMPLETION_TOKENS, row.tail)
        row = row._replace(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    return row


def _text(answer: bytes) -> str | None:
    """The answer as text; None where it is none, as when it came compressed."""
    try:
        return answer.decode()
    except UnicodeDecodeError:
        return None


def without_people(body: bytes) -> bytes:
    """A JSON object without the fields that name people."""
    return orjson.dumps({name: value for name, value in orjson.loads(body).items() if name not in PEOPLE_FIELDS})


def _last(pattern: re.Pattern[bytes], tail: bytes) -> int | None:
    found = pattern.findall(tail)
    return int(found[-1]) if found else None
