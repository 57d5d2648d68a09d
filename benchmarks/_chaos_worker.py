"""The worker that the chaos benchmark kills: ``python -m benchmarks._chaos_worker SETTINGS PLAN RUN FOLDER``.

It bakes as a night does, and notes in FOLDER what the engine is asked, by fingerprint: when, and how many tokens of a
partial answer came with it. Exits as the command line does.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from engine import Engine, Prompt, open_engine
from prebake.errors import PrebakeError
from prebake.settings import Settings
from prebake.stop import Stop, stop_on_signals
from storage.store import open_store
from tasks.bake import bake

_ASKED: Final = "asked"
_RECORD: Final = struct.Struct("<16sdQ")


class _Noting:
    """The engine itself, but each prompt that is added is noted in a file first."""

    def __init__(self, engine: Engine, file: Path) -> None:
        self._engine = engine
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def add(self, prompt: Prompt) -> None:
        """Note it, then add it."""
        tokens = len(prompt.partial.token_ids) if prompt.partial else 0
        os.write(self._file, _RECORD.pack(prompt.key, time.time(), tokens))
        self._engine.add(prompt)


def was_asked(folder: Path) -> bool:
    """Whether the engine was asked anything yet."""
    file = folder / _ASKED
    return file.exists() and file.stat().st_size > 0


def read_asked(folder: Path) -> Iterator[tuple[bytes, float, int]]:
    """What the engine was asked: fingerprint, time, tokens of the partial answer."""
    if was_asked(folder):
        yield from _RECORD.iter_unpack((folder / _ASKED).read_bytes())


def main() -> int:
    """Bake the plan; returns the exit code."""
    text, plan_id, run_id, folder = sys.argv[1:]
    settings = Settings.model_validate_json(text)
    try:
        with stop_on_signals() as stop, open_store(settings) as store, _opened(settings, stop) as engine:
            noting: Any = _Noting(engine, Path(folder) / _ASKED)
            bake(store, settings, plan_id, run_id=run_id, owner=run_id, engine=noting, stop=stop)
    except PrebakeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _opened(settings: Settings, stop: Stop) -> closing[Engine]:
    return closing(open_engine(settings.engine, stop))


if __name__ == "__main__":
    sys.exit(main())
