"""Logits processors for vLLM: one ends the engine at a certain prompt, one at a batch that is too large, one is slow.

They stand for what really does so (a kernel that faults, a grammar that never ends, a GPU that is full, a model that
is not tiny): the deaths and the waiting are real.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Final

from vllm.v1.sample.logits_processor import LogitsProcessor

DEADLY_SEED: Final = 666
MOST_AT_ONCE: Final = 4
STEP_S: Final = 0.01
SNAIL_STEP_S: Final = 0.2


class DeadlyProcessor(LogitsProcessor):
    """Kills its process when a request with one certain seed is scheduled. Changes no logits."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: Any) -> Any:
        return logits

    def update_state(self, batch_update: Any) -> None:
        for _index, params, _prompt, _output in batch_update.added if batch_update else ():
            if params.seed == DEADLY_SEED:
                os.kill(os.getpid(), signal.SIGKILL)


class HungryProcessor(DeadlyProcessor):
    """Fails as PyTorch does on a full GPU when more than a few requests run at once."""

    def is_argmax_invariant(self) -> bool:
        return False

    def apply(self, logits: Any) -> Any:
        import torch

        if logits.shape[0] > MOST_AT_ONCE:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return logits


class SlowProcessor(DeadlyProcessor):
    """Sleeps at each token as a large model computes: a bake can be stopped before its engine is through."""

    def is_argmax_invariant(self) -> bool:
        return False

    def apply(self, logits: Any) -> Any:
        time.sleep(STEP_S)
        return logits


class SnailProcessor(SlowProcessor):
    """Slower still: answers of some hundred tokens are unfinished even if the machine holds the test up for long."""

    def apply(self, logits: Any) -> Any:
        time.sleep(SNAIL_STEP_S)
        return logits
