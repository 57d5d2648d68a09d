"""Finds the prompt that kills the engine by halving: at most log2(n) further deaths among n suspects."""

from __future__ import annotations

from collections.abc import Sequence


class Search:
    """One search, from a death of the engine to the prompt that caused it, or to the proof that none did.

    Ask the engine ``testing`` and nothing else; then say whether it died or survived, until ``over``.
    """

    def __init__(self, suspects: Sequence[bytes]) -> None:
        self.testing: list[bytes] = []
        self._waiting: list[bytes] = []
        self._halve(list(suspects))

    @property
    def over(self) -> bool:
        """Whether there is nothing left to test."""
        return not self.testing

    def died(self, unanswered: Sequence[bytes]) -> bytes | None:
        """The engine died on ``testing`` with these still unanswered; returns the culprit if only one is left."""
        if len(unanswered) <= 1:
            self.testing, self._waiting = [], []
            return unanswered[0] if unanswered else None
        self._halve(list(unanswered))
        return None

    def survived(self) -> None:
        """All of ``testing`` came back, so it is one of those that wait, or none."""
        self._halve(self._waiting)

    def _halve(self, suspects: list[bytes]) -> None:
        half = (len(suspects) + 1) // 2
        self.testing, self._waiting = suspects[:half], suspects[half:]
