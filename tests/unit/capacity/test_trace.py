"""Traces: formats, polarity, refusals, and the made-up ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from benchmarks.spot import H100
from capacity.lifetimes import Lifetimes
from capacity.synthetic import make_trace
from capacity.trace import Trace, load_trace
from prebake.errors import InputError

CSV = """time,zone,available,spot_usd,on_demand_usd
2026-01-01T00:00:00Z,a,1,2.0,10
2026-01-01T00:00:00Z,b,0,3.0,11
2026-01-01T00:10:00Z,a,0,2.5,10
2026-01-01T00:10:00Z,b,4,3.0,11
"""


def _zone(folder: Path, name: str, start: str, data: list[int], **changes: object) -> None:
    price = {"price": 2.0, "on_demand_price": 10.0}
    metadata = {"gap_seconds": 600, "start_time": start, "zone": name, "price_info": price}
    (folder / name).mkdir(parents=True)
    (folder / name / "full.json").write_text(json.dumps({"metadata": metadata, "data": data, **changes}))


def _check_example(trace: Trace) -> None:
    assert trace.zones == ("a", "b")
    assert trace.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert trace.tick_h == pytest.approx(1 / 6)
    assert trace.available.tolist() == [[1, 0], [0, 4]]
    assert trace.spot_usd.tolist() == [[2.0, 3.0], [2.5, 3.0]]
    assert trace.on_demand_usd.tolist() == [10, 11]


def test_a_csv_table_counts_machines_that_are_available(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    _check_example(load_trace(tmp_path / "t.csv"))


def test_a_parquet_table_is_the_same_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(tmp_path / "t.csv"), tmp_path / "t.parquet")
    _check_example(load_trace(tmp_path / "t.parquet"))


def test_json_has_a_list_for_each_zone(tmp_path: Path) -> None:
    zones = {
        "a": {"available": [1, 0], "spot_usd": [2.0, 2.5], "on_demand_usd": 10},
        "b": {"available": [0, 4], "spot_usd": 3.0, "on_demand_usd": 11},
    }
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"start": "2026-01-01T00:00:00Z", "tick_s": 600, "zones": zones}))
    _check_example(load_trace(file))


def test_in_skynomads_layout_one_means_preempted(tmp_path: Path) -> None:
    _zone(tmp_path, "a", "2026-01-01T00:00:00+00:00", [0, 1, 1])
    assert load_trace(tmp_path).available.tolist() == [[1], [0], [0]]


def test_zones_that_began_at_different_times_are_put_on_one_clock(tmp_path: Path) -> None:
    _zone(tmp_path, "a", "2026-01-01T00:00:00+00:00", [0, 1, 1, 0])
    _zone(tmp_path, "b", "2026-01-01T00:20:00+00:00", [0, 0, 1])
    trace = load_trace(tmp_path)
    assert trace.start == datetime(2026, 1, 1, 0, 20, tzinfo=UTC)
    assert trace.available.tolist() == [[0, 1], [1, 1]]


def test_counts_in_skynomads_layout_are_refused_rather_than_guessed(tmp_path: Path) -> None:
    _zone(tmp_path, "a", "2026-01-01T00:00:00+00:00", [0, 3])
    with pytest.raises(InputError, match=r"a/full\.json: .*0 \(available\) and 1 \(preempted\)"):
        load_trace(tmp_path)


def test_zones_that_never_overlap_are_refused(tmp_path: Path) -> None:
    _zone(tmp_path, "a", "2026-01-01T00:00:00+00:00", [0])
    _zone(tmp_path, "b", "2026-01-02T00:00:00+00:00", [0])
    with pytest.raises(InputError, match="do not overlap"):
        load_trace(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (CSV.replace("spot_usd", "price"), "spot_usd"),
        (CSV.replace(",4,", ",-4,"), "zone b: available must be 0 or more"),
        (CSV.replace("2.5", "0"), "zone a: spot_usd must be above 0"),
        (CSV.replace("2.5", "nan"), "zone a: spot_usd must be above 0"),
        (CSV + "2026-01-01T00:25:00Z,a,1,2,10\n2026-01-01T00:25:00Z,b,1,2,10\n", "evenly spaced"),
        (CSV + "2026-01-01T00:20:00Z,a,1,2,10\n", "zone b has 2 rows for 3 times"),
        (CSV.replace("2026-01-01T00:00:00Z", "yesterday"), "yesterday"),
        ("", "docs/spot.md"),
        ("time,zone,available,spot_usd,on_demand_usd\n", "at least two times"),
    ],
)
def test_a_table_that_is_no_trace_is_refused_with_the_reason(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text(content)
    with pytest.raises(InputError, match=problem) as caught:
        load_trace(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.parquet", "t.txt"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=name):
        load_trace(tmp_path / name)


def test_the_shipped_h100_trace_is_mostly_available() -> None:
    trace = load_trace(H100)
    assert len(trace.zones) == 13
    share = dict(zip(trace.zones, trace.available.mean(axis=0), strict=True))
    assert share["us-central1-a"] == pytest.approx(0.958, abs=1e-3)
    assert share["us-west1-b"] == pytest.approx(0.241, abs=1e-3)


def test_a_seed_makes_the_same_trace_and_another_seed_another() -> None:
    assert np.array_equal(make_trace(1).available, make_trace(1).available)
    assert not np.array_equal(make_trace(1).available, make_trace(2).available)


def test_made_up_zones_come_and_go() -> None:
    share = make_trace(1).available.mean(axis=0)
    assert ((share > 0.05) & (share < 1)).all()


def test_lifetimes_learn_each_zones_own_rate() -> None:
    seen = Lifetimes.unknown(2)
    for tick in range(1200):
        seen = seen.observe(np.array([1, tick % 6 != 0], np.int32), 1 / 6)
    forecast = seen.forecast(0.2)
    assert forecast.life_h[0, 0] > 5 * forecast.life_h[1, 0]
    assert (forecast.worked_h <= forecast.life_h).all()


def test_a_zone_that_has_lasted_is_expected_to_last_longer() -> None:
    young = Lifetimes.unknown(1).observe(np.array([1], np.int32), 1 / 6)
    forecast = young.forecast(0.2)
    assert (np.diff(forecast.life_h[0]) >= -1e-9).all()
