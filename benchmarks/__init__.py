"""Benchmarks: prebake beside the plain tool for the same job, on the same data, in one run.

Each module here whose name begins with a letter is one benchmark: ``run(size=...)`` returns what it measured, and the
first line of its docstring says what that is; ``unavailable()``, where there is one, why this machine cannot run it.
Run them by ``python -m benchmarks NAME``.
"""

from __future__ import annotations

import os
import pkgutil
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Measured:
    """What one benchmark found.

    ``ratios`` compare two measurements of this run and are what is worth quoting; ``sizes`` say how much was
    measured; ``figures`` are absolute (units in their names) and mean little on another machine.
    """

    ratios: dict[str, float]
    sizes: dict[str, int]
    figures: dict[str, float] = field(default_factory=dict)


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def interleaved(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median result of each contestant over so many rounds.

    All run in every round, each round in another order, so that a slow minute of the machine meets all of them.
    """
    results: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for _ in range(rounds):
        for name in order:
            results[name].append(contestants[name]())
        order.append(order.pop(0))
    return {name: median(found) for name, found in results.items()}


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gb": round(pages / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or "unknown")
