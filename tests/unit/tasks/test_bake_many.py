"""One report of several bake workers."""

from __future__ import annotations

import pytest

from prebake.errors import EngineError, Interrupted
from tasks.bake import BakeReport
from tasks.bake_many import sum_up

FIRST = BakeReport(answers=3, completion_tokens=40, seconds=9.0, tokens_per_s=5.0, gpu_usd=0.25, shards=1, unpaid=7)
SECOND = BakeReport(answers=5, completion_tokens=60, seconds=8.0, tokens_per_s=7.5, gpu_usd=0.5, shards=2, unpaid=2)


def test_counts_speeds_and_dollars_are_added_and_the_time_is_the_clocks() -> None:
    total = sum_up([FIRST, SECOND], 10.0)
    assert (total.answers, total.completion_tokens, total.shards) == (8, 100, 3)
    assert (total.tokens_per_s, total.gpu_usd, total.seconds) == (12.5, 0.75, 10.0)


def test_what_is_left_unpaid_is_what_the_last_worker_left() -> None:
    assert sum_up([FIRST, SECOND], 10.0).unpaid == 2


def test_a_worker_that_failed_does_not_fail_a_bake_that_others_finished() -> None:
    assert sum_up([EngineError("GPU 1 is broken"), SECOND], 10.0).answers == 5


def test_if_all_failed_the_first_error_is_told() -> None:
    with pytest.raises(EngineError, match="no such folder"):
        sum_up([EngineError("no such folder"), EngineError("no such folder either")], 10.0)


def test_a_stop_is_told_even_if_a_worker_had_finished() -> None:
    with pytest.raises(Interrupted, match="SIGTERM"):
        sum_up([FIRST, Interrupted("stopped: SIGTERM")], 10.0)
