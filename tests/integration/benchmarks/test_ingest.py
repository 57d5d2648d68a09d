"""The ingest benchmark runs small: what it prints is checked, how fast it was is not."""

from __future__ import annotations

from tests.measuring import measured


def test_it_prints_its_ratio_as_the_last_line() -> None:
    found = measured("ingest", 2000, timeout_s=300)
    assert found["ratio_duckdb"] > 0
    assert found["sizes"]["rows"] == 2000
    assert 0 < found["sizes"]["distinct_prompts"] < 2000
