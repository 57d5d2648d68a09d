"""The command line as people and programs meet it: help that teaches, one line of trouble, exit codes, JSON."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from prebake import __version__
from prebake.settings import Settings
from prebake.settings import Store as StoreSettings
from storage.store import open_store

SETTINGS = """
[store]
root = "store"
[plan]
budget_answers = 0
[prices.online."*"]
input_usd_per_million = 1
output_usd_per_million = 2
[[routes]]
name = "faq"
scope = "shared"
fold = "text"
"""
COMMANDS = ["init", "doctor", "ingest", "mine", "plan", "bake", "publish", "nightly", "backfill", "snapshots"]
COMMANDS += ["rollback", "prefect", "explain", "block", "unblock", "approve", "key", "serve", "spot", "sql"]


def prebake(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, with no settings from outside."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREBAKE_")}
    return subprocess.run(
        [sys.executable, "-m", "prebake", *arguments],
        cwd=folder,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def yesterday() -> date:
    """The last whole day now: asked when it is needed, for midnight may pass while tests run."""
    return datetime.now(UTC).date() - timedelta(days=1)


def as_json(run: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON object on standard output."""
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def wait_until_handled(pid: int, number: signal.Signals) -> None:
    """Return when the process has a handler of its own for the signal (proc(5), SigCgt)."""
    for _ in range(600):
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.M)
        # Python itself catches SIGINT from its start, so SIGTERM tells for both.
        if caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} never handled {number.name}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with settings and a small log of yesterday: one question of three users, one of one user."""
    (tmp_path / "prebake.toml").write_text(SETTINGS)
    day = yesterday()
    rows = [("How do I reset my PIN?", f"user-{n}") for n in range(3)] + [("Tell me a story", "user-9")]
    lines = [
        json.dumps(
            {
                "timestamp": f"{day}T10:00:{n:02}Z",
                "body": {"model": "m", "user": user, "messages": [{"role": "user", "content": text}]},
            }
        )
        for n, (text, user) in enumerate(rows)
    ]
    with gzip.open(tmp_path / "log.jsonl.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    return tmp_path


def test_help_names_every_command_and_shows_a_first_night(tmp_path: Path) -> None:
    text = prebake(tmp_path, "--help").stdout
    assert "prebake nightly" in text
    for command in COMMANDS:
        assert f"\n  {command} " in text


def test_the_version_needs_no_command(tmp_path: Path) -> None:
    run = prebake(tmp_path, "--version")
    assert (run.returncode, run.stdout) == (0, f"prebake {__version__}\n")


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "serve"])
def test_each_command_teaches_by_an_example(tmp_path: Path, command: str) -> None:
    run = prebake(tmp_path, command, "--help")
    assert run.returncode == 0
    assert f"Example: prebake {command}" in run.stdout


def test_init_writes_a_settings_file_that_is_valid_and_never_overwrites_one(tmp_path: Path) -> None:
    assert prebake(tmp_path, "init").returncode == 0
    assert tomllib.loads((tmp_path / "prebake.toml").read_text())["routes"][0]["name"] == "default"
    again = prebake(tmp_path, "init")
    assert again.returncode == 2
    assert "there already" in again.stderr


def test_an_unknown_setting_is_one_line_that_names_the_file_and_the_nearest_key(folder: Path) -> None:
    (folder / "prebake.toml").write_text("[plan]\nbuget_usd = 3\n")
    run = prebake(folder, "mine")
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert "prebake.toml" in run.stderr
    assert "Did you mean 'budget_usd'?" in run.stderr


def test_the_environment_overrides_the_file_and_doctor_says_where_each_value_came_from(folder: Path) -> None:
    report = json.loads(prebake(folder, "doctor", "--json", PREBAKE_PLAN__BUDGET_ANSWERS="7").stdout)
    origins = {row["key"]: (row["value"], Path(row["origin"]).name) for row in report["settings"]}
    assert origins["plan.budget_answers"] == (7, "environment")
    assert origins["store.root"] == (str(folder / "store"), "prebake.toml")
    assert origins["plan.shard_size"] == (256, "default")


def test_doctor_fails_while_no_model_is_set_and_says_what_to_do(folder: Path) -> None:
    run = prebake(folder, "doctor", "--json")
    assert run.returncode == 1
    model = next(row for row in json.loads(run.stdout)["findings"] if row["what"] == "model")
    assert model["state"] == "fail"
    assert "[engine]" in model["remedy"]


def test_the_steps_lead_from_a_log_to_a_plan_with_reasons(folder: Path) -> None:
    assert as_json(prebake(folder, "ingest", "log.jsonl.gz", "--json"))["rows"] == 4
    assert as_json(prebake(folder, "ingest", "log.jsonl.gz", "--json"))["rows"] == 0
    assert as_json(prebake(folder, "mine", "--json"))["fingerprints"] == 2
    assert as_json(prebake(folder, "plan", "--json"))["answers"] == 0
    asked = as_json(prebake(folder, "sql", "--json", "select prompt, requests, users, decision, reason from plan"))
    assert asked["rows"] == [["How do I reset my PIN?", 3, 3, "skip", "budget"]]


def test_a_night_with_a_budget_of_nothing_runs_to_its_end_and_publishes_an_empty_store(folder: Path) -> None:
    before = yesterday()
    (night,) = as_json(prebake(folder, "nightly", "--log", "log.jsonl.gz", "--json"))["nights"]
    assert night["day"] in (str(before), str(yesterday()))
    assert night["bake"]["answers"] == 0
    assert list(night["wall_s"]) == ["ingest", "mine", "plan", "bake", "publish", "report"]
    runs = as_json(prebake(folder, "sql", "--json", "select kind, status from runs"))["rows"]
    assert runs == [["nightly", "completed"]]
    (snapshot,) = as_json(prebake(folder, "snapshots", "--json"))["snapshots"]
    assert snapshot["current"] is True
    assert snapshot["answers"] == 0


def test_a_second_night_on_the_same_store_says_who_holds_it_and_exits_with_5(folder: Path) -> None:
    settings = Settings(store=StoreSettings(root=str(folder / "store")))
    with open_store(settings) as store, store.ledger.lock("night", "elsewhere:1", 60, 0):
        run = prebake(folder, "nightly", "--log", "log.jsonl.gz", "--json")
    assert run.returncode == 5
    assert "elsewhere:1" in run.stderr
    assert json.loads(run.stdout)["error"] == "BusyError"


def test_a_second_night_waits_when_told_to(folder: Path) -> None:
    settings = Settings(store=StoreSettings(root=str(folder / "store")))
    with open_store(settings) as store:
        with store.ledger.lock("night", "elsewhere:1", 60, 0):
            waiting = subprocess.Popen(
                [sys.executable, "-m", "prebake", "nightly", "--log", "log.jsonl.gz", "--wait-s", "60"],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            wait_until_handled(waiting.pid, signal.SIGTERM)
            assert waiting.poll() is None
        assert waiting.wait(60) == 0


def test_spot_plays_the_settings_on_made_up_traces_and_draws_one(folder: Path) -> None:
    arguments = ["--windows", "2", "--work-h", "12", "--plot", "night.png", "--json"]
    rows = {row["policy"]: row for row in as_json(prebake(folder, "spot", *arguments))["rows"]}
    assert rows["prebake"]["missed"] == 0
    assert 1 <= rows["prebake"]["cost_over_oracle"] < rows["on demand"]["cost_over_oracle"]
    assert (folder / "night.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan", "--day", "2026-13-01"], 3, "YYYY-MM-DD"),
        (["plan", "--route", "fak"], 3, "no route is called 'fak' (did you mean 'faq'?); the settings have: faq"),
        (["backfill", "--from", "2026-10-02", "--to", "2026-10-01"], 3, "before start"),
        (["backfill", "--from", "2026-10-02", "--to", "2999-10-01"], 3, "future"),
        (["sql", "selec 1"], 3, "syntax error"),
        (["ingest", "no-such-file.jsonl"], 3, "no-such-file.jsonl"),
        (["--settings", "elsewhere.toml", "mine"], 2, "elsewhere.toml"),
        (["bake"], 3, "prebake plan"),
        (["rollback"], 4, "snapshot"),
        (["nightly", "--redo", "everything"], 2, "missing, counts, answers or all"),
    ],
)
def test_trouble_is_told_without_a_traceback_and_with_its_own_exit_code(
    folder: Path, arguments: list[str], code: int, words: str
) -> None:
    run = prebake(folder, *arguments)
    assert run.returncode == code, run.stderr
    assert words in " ".join(run.stderr.replace("│", " ").split())
    assert "Traceback" not in run.stderr


def test_a_store_that_cannot_be_written_is_one_line_and_exit_code_4(folder: Path) -> None:
    (folder / "store").write_text("a file where the store's folder should be")
    run = prebake(folder, "mine")
    assert run.returncode == 4
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_night_politely_and_the_same_command_goes_on(folder: Path, number: signal.Signals) -> None:
    settings = Settings(store=StoreSettings(root=str(folder / "store")))
    command = [sys.executable, "-m", "prebake", "nightly", "--log", "log.jsonl.gz", "--wait-s", "60"]
    with open_store(settings) as store, store.ledger.lock("night", "elsewhere:1", 60, 0):
        night = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        wait_until_handled(night.pid, number)
        night.send_signal(number)
    _, trouble = night.communicate(timeout=60)
    assert night.returncode == 130
    assert "Traceback" not in trouble
    assert prebake(folder, "nightly", "--log", "log.jsonl.gz").returncode == 0


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("ingest", signal.SIGINT),
        ("mine", signal.SIGTERM),
        ("plan", signal.SIGINT),
        ("bake", signal.SIGTERM),
        ("publish", signal.SIGINT),
    ],
)
def test_a_signal_after_any_step_leaves_nothing_half_done(folder: Path, step: str, number: signal.Signals) -> None:
    """The signal comes while the next step begins; where a person presses the key is chance enough for the rest."""
    command = [sys.executable, "-m", "prebake", "nightly", "--log", "log.jsonl.gz"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as night:
        assert night.stderr is not None
        said = ""
        for line in night.stderr:
            said += line
            if line.startswith(step):
                night.send_signal(number)
        night.wait(60)
    assert night.returncode in (0, 130)  # 0: it was at its end before the signal came
    assert "Traceback" not in said
    (again,) = as_json(prebake(folder, "nightly", "--log", "log.jsonl.gz", "--json"))["nights"]
    assert again["publish"]["answers"] == 0
    counted = as_json(prebake(folder, "sql", "--json", "select sum(requests)::int, count(*) from daily_counts"))["rows"]
    logged = as_json(prebake(folder, "sql", "--json", "select count(*) from query_log"))["rows"]
    assert (counted, logged) == ([[4, 2]], [[4]])
