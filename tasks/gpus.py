"""Cuts a machine's GPUs into one slice per engine process, as the engine's own arguments say how many each takes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Final

from prebake.errors import SettingsError
from prebake.settings import Engine as EngineSettings

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_ASK_S: Final = 30.0


def gpus_per_engine(settings: EngineSettings) -> int:
    """GPUs that one engine takes: tensor parallel times pipeline parallel."""
    sizes = (settings.args.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size"))
    tensor, pipeline = (int(size) for size in sizes)
    return tensor * pipeline


def visible_gpus() -> list[str]:
    """The GPUs this process may use: as CUDA_VISIBLE_DEVICES says, else all that NVIDIA's driver has; none on a CPU."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.split()


def environments(settings: EngineSettings, gpus: Sequence[str], processes: int) -> list[dict[str, str]]:
    """The environment that gives each of so many processes its own GPUs; nothing is set where the machine has none.

    Raises SettingsError if there are too few.
    """
    each = gpus_per_engine(settings)
    if not gpus or processes == 1:
        return [{} for _ in range(processes)]
    if len(gpus) < processes * each:
        raise SettingsError(
            f"{processes} engines with {each} GPUs each need {processes * each}, and this machine shows {len(gpus)} "
            f"({','.join(gpus)}); set capacity.max_machines, or --workers, to {len(gpus) // each} or less"
        )
    return [{VISIBLE: ",".join(gpus[n * each : (n + 1) * each])} for n in range(processes)]
