"""Counts the tokens that vLLM generates, in a file that outlives a kill -9 of the process that counts.

A logits processor: vLLM's core calls it once a step with a row of logits for each token it is about to generate. It
changes nothing. What the bake loop believes plays no part in it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from vllm.v1.sample.logits_processor import LogitsProcessor

FOLDER: Final = "PREBAKE_TOKEN_METER"
"""The environment variable that says in which folder each process keeps its count."""

_COUNT: Final = struct.Struct("<Qd")
_PAUSE_S: Final = 1.0


class TokenMeter(LogitsProcessor):  # type: ignore[misc]  # vLLM is untyped
    """Keeps tokens generated, and seconds in which they were, in a file named after the process."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:  # noqa: ARG002 - vLLM's signature
        path = Path(os.environ[FOLDER]) / f"{os.getpid()}.meter"
        path.write_bytes(_COUNT.pack(0, 0.0))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _COUNT.size)  # the kernel keeps it when the process is killed
        self._stepped_s = time.monotonic()

    def is_argmax_invariant(self) -> bool:
        """False, or it would not be called for greedy requests."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Nothing is kept of single requests."""

    def apply(self, logits: Any) -> Any:
        """Count the rows; a pause in which nothing was asked is no time of generation."""
        now = time.monotonic()
        tokens, seconds = _COUNT.unpack_from(self._map)
        step_s = now - self._stepped_s
        _COUNT.pack_into(self._map, 0, tokens + logits.shape[0], seconds + (step_s if step_s < _PAUSE_S else 0))
        self._stepped_s = now
        return logits


def read_meters(folder: Path) -> Iterator[tuple[int, float]]:
    """Tokens and seconds of each process that counted there."""
    for path in folder.glob("*.meter"):
        yield _COUNT.unpack(path.read_bytes())
