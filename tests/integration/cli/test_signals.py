"""A signal in the midst of a step: the process says so in one line, nothing is half there, the next run makes it whole.

Each step is seen to be at work by what it leaves on the disk, and has enough to do that the signal finds it there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from prebake.loading import load
from prebake.progress import Silent
from prebake.stop import Stop
from storage.catalog import connect
from storage.snapshot import snapshots
from storage.store import open_store
from tasks.bake import bake
from tasks.ingest import ingest
from tasks.mine import mine
from tests.baking import PLAN_ID, add_plan, question
from tests.integration.cli.test_commands import prebake
from tests.parrot_engine import ParrotEngine

LAST_DAY = date(2026, 3, 31)
DAYS, PROMPTS, PARTS = 60, 100, 80
SETTINGS = f"""
[store]
root = "store"
[mine]
window_days = {DAYS}
threads = 1
[plan]
budget_answers = 10
[[routes]]
name = "faq"
scope = "shared"
serve_truncated = true
"""


class Step(NamedTuple):
    """A command; whether it is in its midst; what SQL finds in the store after the signal and after the next run."""

    command: list[str]
    begun: Callable[[Path], bool]
    query: str
    half: Callable[[list[Any]], bool]
    whole: list[Any]


def commits(table: str) -> Callable[[Path], int]:
    """How many commits the table has."""
    return lambda folder: sum(1 for _ in (folder / "store" / "tables" / table / "_delta_log").glob("*.json"))


STEPS = {
    "mine": Step(
        ["mine"],
        lambda folder: commits("daily_counts")(folder) > 1,
        "select count(*), min(n), max(n) from (select sum(requests)::int as n from daily_counts group by day)",
        lambda row: 0 < row[0] < DAYS and row[1:] == [2 * PROMPTS, 2 * PROMPTS],
        [DAYS, 2 * PROMPTS, 2 * PROMPTS],
    ),
    "plan": Step(
        ["plan", "--day", str(LAST_DAY)],
        lambda folder: any((folder / "tmp").glob("prebake-scratch-*")),
        "select count(*), count(*) filter (decision = 'bake') from plan",
        lambda row: row == [0, 0],
        [DAYS * PROMPTS, 10],
    ),
    "publish": Step(
        ["publish"],
        lambda folder: commits("answers")(folder) > 1,
        "select count(*), count(distinct fingerprint) from answers",
        lambda row: 0 < row[0] == row[1] < PARTS,
        [PARTS, PARTS],
    ),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each step, with all that comes before it."""
    folders = {name: tmp_path_factory.mktemp(name) for name in STEPS}
    for folder in folders.values():
        (folder / "prebake.toml").write_text(SETTINGS)
        (folder / "tmp").mkdir()
    log = folders["mine"] / "log.jsonl"
    log.write_text("\n".join(json.dumps(row) for row in asked()))
    settings = load(folders["mine"] / "prebake.toml")
    with open_store(settings) as store:
        ingest(store, settings, [str(log)], progress=Silent(), stop=Stop())
    shutil.copytree(folders["mine"] / "store", folders["plan"] / "store")
    settings = load(folders["plan"] / "prebake.toml")
    with open_store(settings) as store:
        mine(store, settings)
    settings = load(folders["publish"] / "prebake.toml")
    with open_store(settings) as store:
        add_plan(store, settings, [question(number) for number in range(PARTS)], shard_size=1)
        bake(store, settings, PLAN_ID, run_id="run", owner="me", engine=ParrotEngine())
        assert len(store.ledger.parts(PLAN_ID)) == PARTS
    return folders


def asked() -> list[dict[str, Any]]:
    """Each day's own prompts, each of two users."""
    midnight = datetime.combine(LAST_DAY, datetime.min.time(), UTC)
    return [
        {
            "timestamp": (midnight - timedelta(days=day, seconds=-number)).isoformat(),
            "user": f"user-{user}",
            "model": "m",
            "messages": [{"role": "user", "content": f"Explain number {number} of part {day}, and say why."}],
        }
        for day in range(DAYS)
        for number in range(PROMPTS)
        for user in range(2)
    ]


@pytest.mark.parametrize(
    ("name", "number"),
    [("mine", signal.SIGTERM), ("plan", signal.SIGINT), ("publish", signal.SIGTERM), ("publish", signal.SIGINT)],
)
def test_a_signal_in_the_midst_of_a_step_leaves_nothing_half_there_and_the_next_run_makes_it_whole(
    filled: dict[str, Path], tmp_path: Path, name: str, number: signal.Signals
) -> None:
    step, folder = STEPS[name], tmp_path / name
    shutil.copytree(filled[name], folder)
    command = [sys.executable, "-m", "prebake", *step.command]
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not step.begun(folder):
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert f"stopped: {number.name}" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert list((folder / "tmp").iterdir()) == []
    (found,) = rows(folder, step.query)
    assert step.half(found), found
    assert rows(folder, "select distinct status from runs where kind = 'publish'") == (
        [["stopped"]] if name == "publish" else []
    )
    with open_store(load(folder / "prebake.toml")) as store:
        assert snapshots(store.objects) == []
    again = prebake(folder, *step.command)
    assert again.returncode == 0, again.stderr
    assert rows(folder, step.query) == [step.whole]


def rows(folder: Path, query: str) -> list[list[Any]]:
    """What SQL finds in the store."""
    with open_store(load(folder / "prebake.toml")) as store, connect(store) as connection:
        return [list(row) for row in connection.execute(query).fetchall()]
