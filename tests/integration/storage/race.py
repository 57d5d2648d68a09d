"""Several real processes that do the same thing at the same moment, and say what came of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prebake.settings import Settings

_PROLOGUE = """
import json, sys
from prebake.settings import Settings
from prebake.errors import *
settings = Settings(**json.loads(sys.argv[1]))
number = int(sys.argv[2])
def ready():
    print("ready", flush=True)
    sys.stdin.readline()
def tell(value):
    print(json.dumps(value), flush=True)
"""


def spawn(settings: Settings, code: str, number: int = 0) -> subprocess.Popen[str]:
    """A process that runs the code with ``settings``, ``number``, ``ready()`` (wait for the signal), ``tell()``."""
    values = settings.model_dump(mode="json", exclude={"routes"})
    if settings.privacy.user_salt is not None:
        values["privacy"]["user_salt"] = settings.privacy.user_salt.get_secret_value()
    return subprocess.Popen(
        [sys.executable, "-c", _PROLOGUE + code, json.dumps(values), str(number)],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    """The process's next line, without its end."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: subprocess.Popen[str]) -> None:
    """Let a process that is ready go on."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def race(settings: Settings, code: str, processes: int = 2) -> list[object]:
    """Run the code in several processes, let them go together, return what each told."""
    running = [spawn(settings, code, number) for number in range(processes)]
    try:
        for process in running:
            assert line(process) == "ready"
        for process in running:
            go(process)
        told = [json.loads(line(process)) for process in running]
        assert [process.wait(timeout=60) for process in running] == [0] * processes
        return told
    finally:
        end(running)


def end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Kill what still runs and close the pipes."""
    for process in processes:
        process.kill()
        process.communicate()
