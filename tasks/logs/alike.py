"""Rows of lines that look alike, column by column: what stands in their holes becomes columns of the query log.

In: blocks of JSON Lines. Out: the lines that are to be parsed one by one (they look like no others, or have a value
that takes a closer look) and, once there are enough, the rows of all others: so each question and each user is worked
out once for a hundred thousand rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import tzinfo
from functools import partial
from io import BytesIO
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from prebake.request import Template, template_of, with_question
from prebake.routes import Routes
from prebake.tables import FINGERPRINT
from prebake.user import hash_user, hash_users
from storage.query_log import WINDOW_ROWS, Arrivals, Int32s, Kind, Request, Requests, Texts
from tasks.logs.blocks import Lines, Span
from tasks.logs.marks import Marks
from tasks.logs.presets import LOOK_INTO_TEXTS, Entry, is_plain
from tasks.logs.shapes import Bools, Fit, Numbers, Shape, Shapes, text_of
from tasks.logs.times import parse_times

# As many rows as are written at once, or so many bytes of texts, of which some ten copies are made on their way.
_TEXT_BYTES: Final = 48 * 2**20

RequestOf = Callable[[dict[str, Any], str | None, str], Request]


class _Taken(NamedTuple):
    ts_us: Numbers
    holes: dict[str, pa.Array]


class AlikeReader:
    """Reads lines that look alike in the same way, block after block."""

    def __init__(
        self,
        shapes: Shapes,
        request_of: RequestOf,
        *,
        preset: str,
        routes: Routes,
        salt: bytes,
        zone: tzinfo,
        latest_us: int,
        max_row_bytes: int,
    ) -> None:
        """``request_of`` works out a request by itself, from its body, tenant and namespace."""
        self._shapes = shapes
        self._request_of = request_of
        self._preset = preset
        self._routes = routes
        self._salt = salt
        self._zone = zone
        self._latest_us = latest_us
        self._max_row_bytes = max_row_bytes
        self._clear()

    def read(self, block: Lines | Span) -> Iterable[tuple[int, bytes]]:
        """Take the lines that look alike; returns all others, each with its number in the file."""
        data = block.data
        marks = Marks.of(data, self._max_row_bytes)
        if marks is None:
            # One line after the other, not all at once by split(): so they stay in the processor's cache.
            return enumerate(BytesIO(data), block.first)
        other = np.ones(len(marks.quotes), np.bool_)
        for fit in self._shapes.fits(marks):
            other[self._take(fit)] = False
        return ((block.first + number, marks.line(number)) for number in np.flatnonzero(other).tolist())

    @property
    def full(self) -> bool:
        """Whether it is time for :meth:`rows`."""
        return self._count >= WINDOW_ROWS or self._bytes >= _TEXT_BYTES

    def rows(self) -> Iterator[tuple[Requests, Arrivals]]:
        """What has been taken since the last time."""
        for shape, taken in self._taken.items():
            yield self._rows(shape, taken)
        self._clear()

    def _clear(self) -> None:
        self._taken: defaultdict[Shape, list[_Taken]] = defaultdict(list)
        self._count = self._bytes = 0

    def _take(self, fit: Fit) -> Numbers:
        """Take the lines but for those whose time or question takes a closer look; returns the lines that are taken."""
        lines, holes = fit.lines, dict(fit.holes)
        ts_us = parse_times(holes.pop("time"), fit.shape.time_is_text, self._zone, self._latest_us)
        good = (ts_us >= 0) & self._plain(holes["question"])
        if not good.all():
            lines, ts_us, keep = lines[good], ts_us[good], pa.array(good)
            holes = {field: column.filter(keep) for field, column in holes.items()}
        if len(lines):
            self._taken[fit.shape].append(_Taken(ts_us, holes))
            self._count += len(lines)
            self._bytes += sum(column.nbytes for column in holes.values())
        return lines

    def _plain(self, questions: pa.BinaryArray) -> Bools | bool:
        """Which questions are what they seem: some layouts look into texts."""
        if self._preset not in LOOK_INTO_TEXTS:
            return True
        each = questions.dictionary_encode()
        plain = [is_plain(self._preset, text_of(question)) for question in each.dictionary.to_pylist()]
        return np.asarray(np.array(plain, np.bool_)[each.indices.to_numpy()])

    def _rows(self, shape: Shape, taken: list[_Taken]) -> tuple[Requests, Arrivals]:
        own = shape.entry
        ts_us = np.concatenate([each.ts_us for each in taken])

        def column(
            field: str, value: Any, kind: pa.DataType, become: Callable[[list[bytes]], Iterable[Any]]
        ) -> pa.Array:
            if field not in taken[0].holes:
                return pa.repeat(pa.scalar(value, kind), len(ts_us))
            values, which = _distinct(taken, field)
            return pa.array(list(become(values.to_pylist())), kind).take(pa.array(which))

        user_hash = own.user_hash if own.user is None else hash_user(own.user, self._salt)
        tenant = column("tenant", own.tenant, pa.string(), _texts)
        requests, which = self._requests(shape, tenant.dictionary_encode("encode"), *_distinct(taken, "question"))
        return requests, Arrivals(
            which,
            ts_us,
            tenant,
            column("user", user_hash, pa.int64(), lambda users: hash_users(_texts(users), self._salt)),
            column("prompt_tokens", own.prompt_tokens, pa.int64(), partial(map, int)),
            column("completion_tokens", own.completion_tokens, pa.int64(), partial(map, int)),
            column("cache", own.cache, pa.string(), _texts),
        )

    def _requests(
        self, shape: Shape, tenant: pa.DictionaryArray, questions: pa.BinaryArray, question: Int32s
    ) -> tuple[Requests, Int32s]:
        """What is asked, and for each row its place in that: tenant by tenant, for theirs are the routes and scopes."""
        asked = _Asked(questions)
        count = len(questions)
        pairs = pa.array(tenant.indices.to_numpy().astype(np.int64) * count + question).dictionary_encode()
        distinct = pairs.dictionary.to_numpy()
        order = np.argsort(distinct)
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        distinct = distinct[order]
        tenants = tenant.dictionary.to_pylist()
        places = np.split(distinct % count, np.searchsorted(distinct, count * np.arange(1, len(tenants))))
        parts = [self._of_tenant(shape.entry, asked, name, own) for name, own in zip(tenants, places, strict=True)]
        return Requests.joined(parts), rank[pairs.indices.to_numpy()]

    def _of_tenant(self, own: Entry, asked: _Asked, tenant: str | None, places: Numbers) -> Requests:
        """The requests of a tenant, who has asked the texts at these places."""
        texts = [asked.texts[place] for place in places.tolist()]
        template = template_of(own.body, self._routes, tenant, own.namespace)
        if not isinstance(template, Template):
            bodies = [with_question(own.body, text) for text in texts]
            return Requests.of([self._request_of(body, tenant, own.namespace) for body in bodies])
        return Requests(
            [Kind(template.route.name, template.scope, None, template.turns, own.body["model"])],
            np.zeros(len(texts), np.int32),
            asked.texts_of(template),
            places.astype(np.int32),
            pa.array(template.fingerprints(texts), FINGERPRINT),
        )


class _Asked:
    """Questions, and the requests that ask them."""

    def __init__(self, questions: pa.BinaryArray) -> None:
        self.texts = _texts(questions.to_pylist())
        self._texts: Texts | None = None

    def texts_of(self, template: Template) -> Texts:
        """What the model is asked, and the prompts: the same in the templates of all tenants."""
        if self._texts is None:
            head, tail = template.asked_head, template.asked_tail
            requests = pa.array([head + orjson.dumps(text) + tail for text in self.texts], pa.string())
            self._texts = Texts(requests, pa.array(self.texts, pa.string()))
        return self._texts


def _texts(values: list[bytes]) -> list[str]:
    return list(map(text_of, values))


def _distinct(taken: list[_Taken], field: str) -> tuple[pa.BinaryArray, Int32s]:
    """What stands in the holes of a field: each value once, and for each line which one."""
    chunks = pa.chunked_array([each.holes[field] for each in taken]).dictionary_encode().chunks
    return chunks[0].dictionary, np.concatenate([chunk.indices.to_numpy() for chunk in chunks])
