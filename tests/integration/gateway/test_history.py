"""Hits and savings over time are the sums of the request log, each row counted once and by its weight."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gateway.admin.history import DAYS, History, Hour
from prebake.prices import TokenPrice
from prebake.settings import Store
from prebake.tables import GATEWAY_LOG
from storage.objects import Objects, open_objects

NOW = datetime(2026, 11, 25, 10, 30, tzinfo=UTC)
PRICES = {"dear*": TokenPrice(input_usd_per_million=1e6, output_usd_per_million=2e6)}


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return open_objects(Store(root=str(tmp_path)))


def row(at: datetime, cache: str = "hit", model: str = "dear-1", **values: Any) -> dict[str, Any]:
    body = orjson.dumps({"model": model, "messages": []}).decode()
    return {"ts": at, "cache": cache, "body": body, "status": 200, "prompt_tokens": 3, "completion_tokens": 2, **values}


def write(objects: Objects, name: str, rows: list[dict[str, Any]], schema: pa.Schema = GATEWAY_LOG.schema) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    objects.write(f"gateway-log/day={rows[0]['ts']:%Y-%m-%d}/{name}.parquet", sink.getvalue())


def test_requests_are_summed_by_hour_and_hits_by_what_they_saved(objects: Objects) -> None:
    earlier = NOW - timedelta(hours=20)
    write(objects, "a", [row(NOW), row(NOW, model="cheap"), row(NOW, "miss"), row(NOW, "bypass")])
    write(objects, "b", [row(earlier), row(NOW - timedelta(days=DAYS + 1))])
    past = History(objects, PRICES).look(NOW, most_s=60)
    assert past.complete
    assert len(past.hours) == 24 * DAYS
    assert past.hours[-1] == (NOW.replace(minute=0), Hour(2, 1, 1, saved_tokens=10, saved_usd=7))
    assert past.hours[-21] == (earlier.replace(minute=0), Hour(1, 0, 0, saved_tokens=5, saved_usd=7))
    assert past.total == Hour(3, 1, 1, saved_tokens=15, saved_usd=14)


def test_a_row_of_a_sample_stands_for_those_that_were_not_logged(objects: Objects) -> None:
    write(objects, "a", [row(NOW, sample_share=0.25), row(NOW, "miss", sample_share=1.0), row(NOW, "miss")])
    total = History(objects, PRICES).look(NOW, most_s=60).total
    assert (total.hits, total.misses, total.saved_tokens) == (4, 2, 20)


def test_a_second_look_counts_only_what_is_new(objects: Objects) -> None:
    history = History(objects, PRICES)
    write(objects, "a", [row(NOW)])
    history.look(NOW, most_s=60)
    write(objects, "b", [row(NOW)])
    assert history.look(NOW, most_s=60).total.hits == 2
    assert history.look(NOW, most_s=60).total.hits == 2
    assert history.look(NOW + timedelta(days=DAYS), most_s=60).total.hits == 0


def test_a_look_without_time_left_says_that_it_is_not_complete_and_the_next_one_goes_on(objects: Objects) -> None:
    write(objects, "a", [row(NOW)])
    history = History(objects, PRICES)
    assert not history.look(NOW, most_s=0).complete
    past = history.look(NOW, most_s=60)
    assert (past.complete, past.total.hits) == (True, 1)


def test_damaged_segments_and_those_of_an_earlier_version_do_no_harm(objects: Objects) -> None:
    day = f"gateway-log/day={NOW:%Y-%m-%d}"
    objects.write(f"{day}/damaged.parquet", b"PAR1 no")
    objects.write(f"{day}/empty.parquet", b"")
    old = pa.schema([field for field in GATEWAY_LOG.schema if field.name not in ("sample_share", "answer")])
    write(objects, "old", [row(NOW)], old)
    assert History(objects, PRICES).look(NOW, most_s=60).total.hits == 1
