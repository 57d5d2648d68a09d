"""A logits processor for vLLM that ends its process when a request with one certain seed is scheduled.

It stands for the prompts that really do so (a kernel that faults, a grammar that never ends): the death is real.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor

DEADLY_SEED = 666


class DeadlyProcessor(LogitsProcessor):
    """Changes no logits."""

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
