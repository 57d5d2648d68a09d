"""A threshold is given only where judged pairs bear it out, and then its error is bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prebake.errors import InputError
from tasks.calibrate import Pair, find_threshold, read_pairs, upper_bound


@pytest.mark.parametrize(
    ("wrong", "of", "alpha", "bound"),
    [  # exact where none is wrong: 1 - alpha ** (1 / of); else Clopper and Pearson's, by the beta distribution
        (0, 100, 0.05, 1 - 0.05 ** (1 / 100)),
        (0, 1, 0.05, 0.95),
        (1, 10, 0.025, 0.4450161),
        (10, 100, 0.025, 0.1762226),
        (5, 5, 0.05, 1.0),
    ],
)
def test_the_bound_is_clopper_and_pearsons(wrong: int, of: int, alpha: float, bound: float) -> None:
    assert upper_bound(wrong, of, alpha) == pytest.approx(bound, abs=1e-6)


def test_too_few_pairs_or_too_many_errors_give_no_threshold() -> None:
    good = [(0.99, True)] * 200
    assert find_threshold(good, max_error=0.01, confidence=0.95) is None
    assert find_threshold([], max_error=0.01, confidence=0.95) is None
    assert find_threshold([(0.9, index % 4 > 0) for index in range(5000)], max_error=0.05, confidence=0.95) is None


def test_the_threshold_stands_where_the_errors_begin() -> None:
    judged = [(1 - index / 10_000, index < 3000 or index % 3 > 0) for index in range(6000)]
    found = find_threshold(judged, max_error=0.02, confidence=0.95)
    assert found is not None
    assert 0.68 < found.similarity < 0.76
    assert found.wrong / found.accepted < 0.02


def test_pairs_of_one_similarity_are_accepted_together() -> None:
    judged = [(0.9, True)] * 1000 + [(0.9, False)] * 1000
    assert find_threshold(judged, max_error=0.05, confidence=0.95) is None


def test_the_error_of_fresh_pairs_exceeds_the_bound_no_more_often_than_it_says() -> None:
    random = np.random.default_rng(5)
    exceeded = 0
    for _ in range(100):  # true error at a similarity s: (1 - s) / 2, so from t on the mean is (1 - t) / 4
        similarities = np.sort(random.random(2000))[::-1]
        judged = [(float(s), bool(random.random() > (1 - s) / 2)) for s in similarities]
        found = find_threshold(judged, max_error=0.05, confidence=0.95)
        exceeded += found is not None and (1 - found.similarity) / 4 > 0.05
    assert exceeded <= 5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs.csv", "route,asked,near,same\nfaq,a,b,true\n,c,d,false\nfaq,e,f,\n"),
        (
            "pairs.jsonl",
            '{"route":"faq","asked":"a","near":"b","same":true}\n{"asked":"c","near":"d","same":false}\n'
            '{"route":"faq","asked":"e","near":"f","same":null}\n',
        ),
    ],
)
def test_pairs_are_read_and_those_not_judged_are_left_out(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert read_pairs(file) == [Pair("faq", "a", "b", True), Pair(None, "c", "d", False)]


def test_pairs_that_cannot_be_read_are_one_line_that_says_what_they_need(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv: no such file"):
        read_pairs(tmp_path / "nowhere.csv")
    (tmp_path / "x.csv").write_text("question,answer\na,b\n")
    with pytest.raises(InputError, match="it needs the columns asked, near"):
        read_pairs(tmp_path / "x.csv")
