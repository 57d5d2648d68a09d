"""The benchmark of baking runs, at a small size, in a process of its own as people start it."""

from __future__ import annotations

import pytest

from tests.measuring import measured


@pytest.mark.slow
def test_it_prints_its_ratios_as_the_last_line() -> None:
    found = measured("bake", 24, timeout_s=550)
    assert found["sizes"]["prompts"] == 24
    for ratio in ("ratio_vllm", "ratio_without_logprobs", "ratio_chunked", "ratio_supervised"):
        assert found[ratio] > 0
