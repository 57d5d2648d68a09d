"""An engine whose processes sleep while they wait for each other, as ours do on a CPU, beside one whose yield.

``ratio_yielding`` is tokens per second, ours over vLLM's own way, of the same plan baked by each in turn. Beside them a
bystander sleeps for 20 ms again and again: ``latest_sleeping_s`` and ``latest_yielding_s`` are how late it ever woke.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final
from unittest.mock import patch

from benchmarks import Measured, interleaved
from benchmarks._plan import limits, messages, prompt_of, uneven
from benchmarks.bake import ARGS, ours
from engine import Engine, open_engine
from prebake.settings import Engine as EngineSettings
from tests.tiny_model import make_tiny_model

ROUNDS: Final = 5
# As many steps for so few tokens as a model that is not tiny takes.
AT_ONCE: Final = 8
_PLUGINS: Final = {"sleeping": {}, "yielding": {"VLLM_PLUGINS": ""}}
_PAUSE_S: Final = 0.02


def unavailable() -> str:
    """Why it cannot run here: beside a GPU vLLM's processes are left to wait in vLLM's own way."""
    from vllm.platforms import current_platform

    return "" if current_platform.is_cpu() else "needs vLLM's CPU build: beside a GPU both are the same"


def run(size: int = 300) -> Measured:
    """Bake a plan of ``size`` prompts by each of the two, five times."""
    prompts = [prompt_of(messages(n), limit) for n, limit in enumerate(limits(size, uneven(4.2, 0.7, 400)))]
    latest = dict.fromkeys(_PLUGINS, 0.0)
    with tempfile.TemporaryDirectory(prefix="prebake-bench-") as folder, ExitStack() as stack:
        model = make_tiny_model(Path(folder) / "model")
        settings = EngineSettings(model=str(model), args=ARGS | {"max_num_seqs": AT_ONCE})
        engines = {name: stack.enter_context(_opened(settings, plugins)) for name, plugins in _PLUGINS.items()}

        def measure(name: str) -> float:
            with _bystander(name, latest):
                return ours(settings, engines[name], prompts)

        speeds = interleaved({name: partial(measure, name) for name in engines}, ROUNDS)
    tokens = sum(prompt["params"]["max_tokens"] for prompt in prompts)
    return Measured(
        ratios={"ratio_yielding": speeds["sleeping"] / speeds["yielding"]},
        sizes={"prompts": size, "tokens": tokens, "rounds": ROUNDS},
        figures={f"{name}_tokens_per_s": speed for name, speed in speeds.items()}
        | {f"latest_{name}_s": late_s for name, late_s in latest.items()},
    )


def _opened(settings: EngineSettings, plugins: dict[str, str]) -> closing[Engine]:
    with patch.dict(os.environ, plugins):
        return closing(open_engine(settings))


@contextmanager
def _bystander(name: str, latest: dict[str, float]) -> Iterator[None]:
    """Note how late another process woke meanwhile, if it was later than before."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_sleep_and_wake, args=(theirs,))
    process.start()
    ours.recv()  # it is there
    yield
    ours.send("enough")
    latest[name] = max(latest[name], ours.recv())
    process.join()


def _sleep_and_wake(parent: Connection) -> None:
    os.setsid()  # Linux schedules sessions as wholes: what starves is what has another one, the kernel's threads too
    parent.send("ready")
    latest_s, asleep_s = 0.0, time.monotonic()
    while not parent.poll(_PAUSE_S):
        woken_s = time.monotonic()
        latest_s, asleep_s = max(latest_s, woken_s - asleep_s - _PAUSE_S), woken_s
    parent.send(latest_s)
