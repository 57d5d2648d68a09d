"""Calibration: from which similarity on may a near hit be served? In: judged pairs. Out: a threshold for each route.

A pair is a question that was asked, the baked question nearest to it, and whether one answer is right for both. Pairs
must come as traffic brings them: judge a random sample of the table ``near_misses``. The bound is on the share of wrong
answers among those that would be served, after the question guard (prebake/question_guard.py).

Method: candidates are so many of the most similar accepted pairs, 16 numbers in geometric steps, chosen before any
judgement is looked at. For each the upper Clopper-Pearson bound (1934) on the error is taken at a confidence that 16
looks share (Bonferroni). The smallest threshold within the bound is the one; where none is, nothing near is served.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import duckdb

from prebake.errors import InputError
from prebake.manifest import Threshold
from prebake.near import Embedding
from prebake.question_guard import difference
from prebake.settings import Settings

CANDIDATES: Final = 16
_READERS: Final = {
    ".parquet": "read_parquet",
    ".csv": "read_csv",
    ".jsonl": "read_json",
    ".json": "read_json",
    ".ndjson": "read_json",
}


class Pair(NamedTuple):
    """A question that was asked, the nearest baked one, and whether the same answer is right for both."""

    route: str | None
    asked: str
    near: str
    same: bool


@dataclass(frozen=True)
class Calibration:
    """What a route's near hits may be: its threshold, or why it has none."""

    route: str
    pairs: int
    refused: int
    threshold: Threshold | None
    reason: str


def calibrate(settings: Settings, embedding: Embedding) -> dict[str, Threshold]:
    """The threshold of each route that serves near hits and whose judged pairs bear one out."""
    found = calibrations(settings, embedding, [route.name for route in settings.routes if route.near == "serve"])
    return {calibration.route: calibration.threshold for calibration in found if calibration.threshold is not None}


def calibrations(settings: Settings, embedding: Embedding, routes: Sequence[str]) -> list[Calibration]:
    """Calibrate these routes on ``near.pairs``; a pair without a route counts for each of them.

    Raises InputError if the pairs cannot be read.
    """
    if not routes:
        return []
    pairs = read_pairs(Path(settings.near.pairs))
    return [
        _calibration(route, [pair for pair in pairs if pair.route in (None, route)], settings, embedding)
        for route in routes
    ]


def read_pairs(file: Path) -> list[Pair]:
    """The judged pairs of a file. Raises InputError naming the file and what it must hold."""
    reader = _READERS.get(file.suffix)
    if reader is None or not file.is_file():
        raise InputError(f"near.pairs: {file}: no such file; give a Parquet, CSV or JSON-lines file (.jsonl)")
    try:
        with duckdb.connect() as connection:
            rows = connection.sql(f"from {reader}($file)", params={"file": str(file)})
            route = "route::varchar" if "route" in rows.columns else "null"
            found = rows.project(f"{route}, asked::varchar, near::varchar, same::boolean").fetchall()
    except duckdb.Error as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"near.pairs: {file}: {reason}; it needs the columns asked, near (texts) and same (true or false)"
        ) from None
    return [Pair(*row) for row in found if None not in row[1:]]


def _calibration(route: str, pairs: Sequence[Pair], settings: Settings, embedding: Embedding) -> Calibration:
    judged = sorted(accepted(pairs, embedding), reverse=True)
    options = settings.near
    threshold = find_threshold(judged, max_error=options.max_error, confidence=options.confidence)
    reason = ""
    if threshold is None:
        least = _fewest(options.max_error, options.confidence)
        reason = (
            f"{len(judged)} pairs pass the guard, at least {least} without an error are needed"
            if len(judged) < least
            else f"no similarity keeps the error within {options.max_error:g} on these pairs"
        )
    return Calibration(route, len(pairs), len(pairs) - len(judged), threshold, reason)


def accepted(pairs: Sequence[Pair], embedding: Embedding) -> list[tuple[float, bool]]:
    """Similarity and judgement of the pairs that nothing in their words keeps apart."""
    if not pairs:
        return []
    asked, near = embedding.embed([pair.asked for pair in pairs]), embedding.embed([pair.near for pair in pairs])
    similarities = (asked * near).sum(axis=1)
    return [
        (float(similarity), pair.same)
        for pair, similarity in zip(pairs, similarities, strict=True)
        if difference(pair.asked, pair.near, embedding.unseen(pair.asked) | embedding.unseen(pair.near)) is None
    ]


def find_threshold(judged: Sequence[tuple[float, bool]], *, max_error: float, confidence: float) -> Threshold | None:
    """The smallest similarity that keeps the error of these judged pairs, most similar first, within the bound."""
    alpha = (1 - confidence) / CANDIDATES
    best: Threshold | None = None
    for count in _counts(_fewest(max_error, confidence), len(judged)):
        similarity = judged[count - 1][0]
        taken = [same for other, same in judged if other >= similarity]
        wrong = taken.count(False)
        if upper_bound(wrong, len(taken), alpha) <= max_error:
            best = Threshold(
                similarity=similarity,
                max_error=max_error,
                confidence=confidence,
                pairs=len(judged),
                accepted=len(taken),
                wrong=wrong,
            )
    return best


def _fewest(max_error: float, confidence: float) -> int:
    """So many pairs without an error are needed for the bound."""
    return math.ceil(math.log((1 - confidence) / CANDIDATES) / math.log1p(-max_error))


def _counts(fewest: int, most: int) -> list[int]:
    if most < fewest:
        return []
    ratio = (most / fewest) ** (1 / (CANDIDATES - 1))
    return sorted({min(most, round(fewest * ratio**step)) for step in range(CANDIDATES)})


def upper_bound(wrong: int, of: int, alpha: float) -> float:
    """The upper Clopper-Pearson bound: the rate at which so few or fewer errors have the probability ``alpha``."""
    if wrong >= of:
        return 1.0
    low, high = wrong / of, 1.0
    for _ in range(60):  # bisection: the probability falls as the rate rises
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(wrong, of, middle) > alpha else (low, middle)
    return high


def _at_most(wrong: int, of: int, rate: float) -> float:
    """The probability of at most so many errors."""
    if rate in (0.0, 1.0):
        return 1.0 - rate
    choose = (math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) for k in range(wrong + 1))
    return math.fsum(
        math.exp(ways + k * math.log(rate) + (of - k) * math.log1p(-rate)) for k, ways in enumerate(choose)
    )
