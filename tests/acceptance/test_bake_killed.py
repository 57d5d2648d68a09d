"""A bake in a process of its own, with real vLLM, killed at any moment and started again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from prebake.settings import Engine as EngineSettings
from prebake.settings import Settings
from storage.store import Store
from tests.baking import PLAN_ID, add_plan, committed, question

# Two engines are loaded one after the other: half a minute each on a quiet machine, many minutes on a busy one.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
_LOADED_S = 1000

_PROGRAM = """
import sys
from prebake.errors import PrebakeError
from prebake.settings import Settings
from prebake.stop import stop_on_signals
from storage.store import open_store
from tasks.bake import bake
settings = Settings.model_validate_json(sys.argv[1])
with stop_on_signals() as stop, open_store(settings) as store:
    try:
        report = bake(store, settings, "plan-1", run_id="run", owner=sys.argv[2], stop=stop)
    except PrebakeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(report.resumed_tokens)
"""


@pytest.fixture
def settings(settings: Settings, engine_settings: EngineSettings) -> Settings:
    """Many small flushes, and leases that a dead worker does not keep for long."""
    small = engine_settings.model_copy(update={"flush_answers": 32, "flush_s": 0.5, "lease_s": 3.0})
    return settings.model_copy(update={"engine": small})


def _start(settings: Settings, owner: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, settings.model_dump_json(), owner],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_rows(store: Store, rows: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _LOADED_S
    while store.ledger.progress(PLAN_ID).rows < rows and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()


def test_kill_9_loses_no_committed_answer_and_doubles_none(store: Store, settings: Settings) -> None:
    planned = add_plan(store, settings, [question(n, max_tokens=40) for n in range(600)], shard_size=100)
    first = _start(settings, "first")
    _wait_for_rows(store, 50, first)
    time.sleep(random.random() / 2)
    first.kill()
    first.communicate()
    before = {row["fingerprint"]: row for row in committed(store)}
    assert 50 <= len(before) < 600
    second = _start(settings, "second")
    _, complaint = second.communicate(timeout=_LOADED_S)
    assert second.returncode == 0, complaint
    after = committed(store)
    assert Counter(row["fingerprint"] for row in after) == Counter(planned)
    assert [row for row in after if row["fingerprint"] in before] != []
    assert all(row == before[row["fingerprint"]] for row in after if row["fingerprint"] in before)


def test_sigterm_stops_with_everything_kept(store: Store, settings: Settings, tmp_path: Path) -> None:
    # Of the answers that begin together some are short, and the others unfinished whenever the signal arrives.
    bodies = [question(n, max_tokens=300 if n % 2 else 10, ignore_eos=True) for n in range(300)]
    planned = add_plan(store, settings, bodies, shard_size=100)
    args = settings.engine.args | {"logits_processors": ["tests.processors:SnailProcessor"]}
    snail = settings.model_copy(update={"engine": settings.engine.model_copy(update={"args": args})})
    first = _start(snail, "first")
    _wait_for_rows(store, 1, first)
    first.send_signal(signal.SIGTERM)
    _, complaint = first.communicate(timeout=_LOADED_S)
    assert first.returncode == 130
    assert "stopped: SIGTERM" in complaint
    progress = store.ledger.progress(PLAN_ID)
    assert progress.leased == 0
    assert progress.rows < 300
    second = _start(settings, "second")
    resumed, complaint = second.communicate(timeout=_LOADED_S)
    assert second.returncode == 0, complaint
    assert int(resumed) > 0
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
