"""The mining benchmark runs small: what it prints is checked, how fast it was is not."""

from __future__ import annotations

from tests.measuring import measured


def test_it_prints_its_ratios_as_the_last_line() -> None:
    found = measured("mine", 2000, timeout_s=300)
    assert found["ratio_duckdb"] > 0
    assert found["ratio_duckdb_cpu"] > 0
    sizes = found["sizes"]
    assert (sizes["rows"], sizes["days"]) == (2000, 5)
    assert 0 < sizes["fingerprints_by_day"] < 2000  # some prompt comes twice on a day
