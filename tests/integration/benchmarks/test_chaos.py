"""A small night with a few kills: whatever is killed, each answer is there once and is the answer it should be."""

from __future__ import annotations

import pytest

from tests.measuring import measured


# An engine is loaded for each kill: half a minute on a quiet machine, minutes on a busy one.
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_night_with_kills_loses_no_answer_doubles_none_and_leaves_no_process() -> None:
    found = measured("chaos", 2, timeout_s=2300)
    assert found["kills"] >= 2
    for promise in ("lost", "doubled", "wrong_finish", "orphans"):
        assert found[promise] == 0, found
    assert 0 <= found["rebaked_share_with_notice"] < 1
    assert found["sizes"]["leases_kept"] == 0
