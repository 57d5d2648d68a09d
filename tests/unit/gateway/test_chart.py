"""Bars stand on one another within the drawing, whatever the numbers are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.chart import HEIGHT, LEFT, WIDTH, draw

START = datetime(2026, 11, 1, tzinfo=UTC)
NUMBERS = st.one_of(st.just(0.0), st.floats(1e-6, 1e12))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=200))
def test_every_bar_is_inside_and_each_stands_on_the_one_before(values: list[tuple[float, float]]) -> None:
    times = [START + timedelta(hours=number) for number in range(len(values))]
    chart = draw(times, {"hits": [hits for hits, _ in values], "misses": [misses for _, misses in values]})
    assert len(chart.bars) == sum(bool(value) for pair in values for value in pair)
    for bar in chart.bars:
        assert LEFT <= bar.x <= WIDTH
        assert -2 <= bar.y <= HEIGHT
        assert bar.height >= 1
    for below, above in zip(chart.bars, chart.bars[1:], strict=False):
        if below.x == above.x:
            assert above.y + above.height <= below.y + 0.2


def test_levels_are_round_and_nights_are_named() -> None:
    chart = draw([START + timedelta(hours=number) for number in range(48)], {"hits": [0.0] * 47 + [43.0]})
    assert [label.text for label in chart.levels] == ["0", "25", "50"]
    assert [label.text for label in chart.days] == ["Sun 01", "Mon 02"]
    assert [bar.title for bar in chart.bars] == ["Mon 02 Nov, 23:00 UTC: 43 hits"]
