"""Times are read alike, one by one and all at once."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.logs.times import parse_time, parse_times
from tasks.logs.trouble import RowError

ZONES = [ZoneInfo("UTC"), ZoneInfo("Europe/Berlin")]
LATEST_US = 2_000_000_000_000_000

two = st.integers(0, 99).map("{:02}".format)
dates = st.dates().map(str) | st.builds("{}-{}-{}".format, st.sampled_from(["2026", "0000", "1999"]), two, two)
separators = st.sampled_from(["T", " ", "t", "x", ""])
clocks = (
    st.times().map(str)
    | st.builds("{}:{}:{}".format, two, two, two)
    | st.sampled_from(["12", "12:30", "1230", "123059", "24:00:00", "23:59:60"])
)
fractions = st.sampled_from(["", ".5", ",5", ".", ".123456", ".1234567", ".123456789"])
offsets = st.sampled_from(
    ["", "Z", "z", " ", "+01:00", "-0130", "+01", "+25:00", "+01:60", "-23:59", "+24:00", "+01:00:30", "+1"]
)
texts = (
    st.builds("{}{}{}{}{}".format, dates, separators, clocks, fractions, offsets) | dates | st.text("0123456789-:TZ.+ ")
)


def one_by_one(value: str | float, zone: ZoneInfo) -> int:
    """What parse_time() says; -1 for what it refuses, and for what is too late."""
    try:
        time = parse_time(value, zone)
    except RowError:
        return -1
    return time if time <= LATEST_US else -1


@pytest.mark.parametrize("zone", ZONES, ids=str)
@given(st.lists(texts, min_size=1, max_size=3))
@example(["2026-03-10T12:00:00Z", "2026-03-10 12:00:00"])
@example(["2026-03-29T02:30:00"])  # an hour that Berlin does not have
@example(["2026-10-25T02:30:00.25"])  # and one that it has twice
def test_texts(zone: ZoneInfo, values: list[str]) -> None:
    each = pa.array([value.encode() for value in values], pa.binary())
    assert parse_times(each, True, zone, LATEST_US).tolist() == [one_by_one(value, zone) for value in values]


@given(st.lists(st.integers(0, 10**18 - 1) | st.decimals(0, 10**11, places=3).map(float), min_size=1, max_size=3))
def test_numbers(values: list[float]) -> None:
    each = pa.array([orjson.dumps(value) for value in values], pa.binary())
    assert parse_times(each, False, ZONES[0], LATEST_US).tolist() == [one_by_one(value, ZONES[0]) for value in values]
