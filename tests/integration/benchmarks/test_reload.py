"""A small roll-out under load: every process swaps, from disk and from S3, and no request notices."""

from __future__ import annotations

import pytest

from tests.measuring import measured


@pytest.mark.slow
def test_nights_roll_out_to_all_processes_and_no_request_fails_or_mixes_two() -> None:
    result = measured("reload", 20, timeout_s=900)
    assert result["swaps"] >= 22
    assert result["sizes"]["swaps_s3"] >= 2
    assert result["sizes"]["requests"] > 0
    assert result["failed"] == result["sizes"]["mixed"] == result["sizes"]["kept"] == 0
    assert result["sizes"]["mapped"] <= 2
