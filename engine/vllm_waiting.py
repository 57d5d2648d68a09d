"""How vLLM's processes wait for each other on a CPU: by sleeping. A plugin that vLLM loads in each of its processes.

https://docs.vllm.ai/en/stable/design/plugin_system.html
"""

from __future__ import annotations


def sleep_between_looks() -> None:
    """Have vLLM's core and workers sleep for an instant between two looks at the memory that they share.

    vLLM's own way is ``sched_yield()``, good where each process has a processor to itself, as beside GPUs; there it
    stays. On a CPU the model computes on the same processors, and Linux (seen with 6.18) then lets what belongs to
    other sessions wait for seconds, once 40: kernel threads, the shell, an engine that somebody else has started.
    With a tiny model sleeping costs a seventh of the speed: ``python -m benchmarks waiting`` measures both. A step of
    a model that is not tiny takes a hundred times as long as the sleep.
    """
    from vllm.distributed import utils
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        utils.USE_SCHED_YIELD = False
