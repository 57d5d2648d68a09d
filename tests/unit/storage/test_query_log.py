"""Rows come out of the day files as they went in, each in the file of its day, however they were windowed."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.tables import QUERY_LOG
from storage import query_log
from storage.query_log import Arrivals, DayFiles, Kind, Request, Requests

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
MARCH_US = 20_520 * DAY_US

kinds = st.builds(
    Kind,
    route=st.none() | st.sampled_from(["faq", "code"]),
    scope=st.none() | st.sampled_from(["shared", "tenant/a"]),
    bypass=st.none() | st.just("no_route"),
    turns=st.integers(0, 2),
    model=st.sampled_from(["m", "n"]),
)
requests = st.builds(
    Request,
    kind=kinds,
    fingerprint=st.none() | st.sampled_from([bytes(16), b"fingerprint 1234"]),
    request=st.none() | st.sampled_from([b"{}", '{"ä":1}'.encode()]),
    prompt=st.sampled_from([b"", b"Hi", "Grüße".encode()]),
)
rows = st.tuples(
    st.integers(0, 9),
    st.integers(MARCH_US, MARCH_US + 3 * DAY_US),
    st.none() | st.sampled_from(["a", "b"]),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.integers(0, 9),
    st.none() | st.integers(0, 9),
    st.none() | st.sampled_from(["hit", "miss"]),
)
batches = st.tuples(st.lists(requests, min_size=10, max_size=10), st.lists(rows, min_size=1, max_size=20))
Batch = tuple[list[Request], list[tuple[Any, ...]]]


def add(files: DayFiles, batch: Batch) -> None:
    files.add(Requests.of(batch[0]), Arrivals.of(*zip(*batch[1], strict=True)))


def expected(batch: Batch) -> Counter[tuple[Any, ...]]:
    found: Counter[tuple[Any, ...]] = Counter()
    for which, ts_us, tenant, user_hash, prompt_tokens, completion_tokens, cache in batch[1]:
        request = batch[0][which]
        values = request.kind._asdict() | {
            "day": (EPOCH + timedelta(microseconds=ts_us)).date(),
            "ts": EPOCH + timedelta(microseconds=ts_us),
            "tenant": tenant,
            "user_hash": user_hash,
            "fingerprint": request.fingerprint,
            "request": None if request.request is None else request.request.decode(),
            "prompt": request.prompt.decode(),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cache": cache,
            "source": "abc",
        }
        found[tuple(values[name] for name in QUERY_LOG.schema.names)] += 1
    return found


def read(day: date, path: Path) -> Counter[tuple[Any, ...]]:
    table = pq.read_table(path)
    assert table.schema.names == [name for name in QUERY_LOG.schema.names if name != "day"]
    return Counter((day, *row.values()) for row in table.to_pylist())


@given(st.lists(batches, min_size=1, max_size=4), st.integers(1, 50))
def test_rows_come_out_as_they_went_in(given_batches: list[Batch], window: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(query_log, "WINDOW_ROWS", window)
        patch.setattr(query_log, "_OPEN_FILES", 2)
        files = DayFiles(Path(folder), "abc")
        for batch in given_batches:
            add(files, batch)
        done = files.finish()
        found = [read(file.day, file.path) for file in done]
    assert [file.rows for file in done] == [rows.total() for rows in found]
    assert sum(found, Counter()) == sum(map(expected, given_batches), Counter())
