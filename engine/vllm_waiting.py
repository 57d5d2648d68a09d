"""How vLLM's processes wait for each other on a CPU: by sleeping. A plugin that vLLM loads in each of its processes.

https://docs.vllm.ai/en/stable/design/plugin_system.html
"""

from __future__ import annotations


def sleep_between_looks() -> None:
    """Have vLLM's core and workers sleep for an instant between two looks at the memory that they share.

    vLLM's own way is ``sched_yield()``, good where each process has a processor to itself, as beside GPUs; there it
    stays. On a CPU the model computes on the same processors. Linux then let others, the engine's own processes too,
    wait seconds for their turn, and the engine generated at less than half its speed: ``python -m benchmarks waiting``
    measures both.
    """
    from vllm.distributed import utils
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        utils.USE_SCHED_YIELD = False
