"""The flows in a real Prefect server of the test's own, on a tiny store whose plan may bake nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness

from flows.backfill import backfill
from flows.nightly import nightly
from flows.run import run, run_step
from prebake.errors import InputError, StorageError
from prebake.loading import load
from prebake.progress import Progress
from prebake.pulse import Pulse
from prebake.settings import Settings
from prebake.stop import Stop
from storage.store import open_store
from tests.integration.cli.test_doctor import prefect_server

pytestmark = pytest.mark.slow

YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """A Prefect server with an empty database, for this module."""
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def settings_file(tmp_path: Path) -> str:
    """A store, a log of yesterday and a budget of no answers: a whole night with nothing to bake."""
    lines = [
        json.dumps(
            {
                "timestamp": f"{YESTERDAY}T{hour:02}:00:00Z",
                "user": f"user-{hour % 5}",
                "model": "m",
                "messages": [{"role": "user", "content": f"How do I reset password {hour % 3}?"}],
            }
        )
        for hour in range(24)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    file = tmp_path / "prebake.toml"
    file.write_text(
        f'[store]\nroot = "store"\n[ingest]\npaths = ["{tmp_path}/log.jsonl"]\n[plan]\nbudget_answers = 0\n'
        '[[routes]]\nname = "banking"\nscope = "shared"\n'
    )
    return str(file)


def test_a_night_completes_under_its_name_and_leaves_summary_picture_and_plan(settings_file: str) -> None:
    state = nightly(day=YESTERDAY, routes=["banking"], settings_file=settings_file, return_state=True)
    assert state.is_completed(), state.message
    run_id = state.state_details.flow_run_id
    assert _run_name(run_id) == f"nightly {YESTERDAY} banking"
    artifacts = _artifacts(run_id)
    assert {key: kind for key, (kind, _) in artifacts.items()} == {
        "night": "markdown",
        "night-picture": "image",
        "plan": "table",
        "plan-decisions": "table",
    }
    rows = json.loads(artifacts["plan"][1])
    assert {(row["decision"], row["reason"]) for row in rows} == {("skip", "budget")}
    assert len(rows) == 3


def test_a_backfill_runs_a_night_for_each_day(settings_file: str) -> None:
    start = YESTERDAY - timedelta(days=1)
    state = backfill(start=start, end=YESTERDAY, settings_file=settings_file, return_state=True)
    assert state.is_completed(), state.message
    assert _run_name(state.state_details.flow_run_id) == f"backfill {start} to {YESTERDAY}"
    with open_store(load(Path(settings_file))) as store:
        assert sorted(night.day for night in store.ledger.runs()) == [start, YESTERDAY]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"start": date(2026, 2, 2), "end": date(2026, 2, 1)}, "lies before start"),
        ({"start": date(2026, 2, 1), "end": date(2999, 1, 1)}, "lies in the future"),
        ({"start": YESTERDAY, "end": YESTERDAY, "routes": ["bankin"]}, "banking"),
        ({"start": YESTERDAY, "end": YESTERDAY, "settings_file": "/nowhere/prebake.toml"}, "no such settings file"),
    ],
    ids=["end before start", "future", "unknown route", "no settings"],
)
def test_what_the_form_cannot_check_fails_first_with_one_clear_sentence(
    wrong: dict[str, Any], sentence: str, settings_file: str
) -> None:
    state = backfill(**({"settings_file": settings_file} | wrong), return_state=True)
    assert state.is_failed()
    assert sentence in (state.message or "")
    assert not (Path(settings_file).parent / "store").exists()


def test_a_night_that_may_not_wait_says_who_holds_the_store(settings_file: str) -> None:
    with open_store(load(Path(settings_file))) as store, store.ledger.lock("night", "the other night", 60, 0):
        state = nightly(day=YESTERDAY, wait_minutes=0, settings_file=settings_file, return_state=True)
    assert state.is_failed()
    assert "the other night" in (state.message or "")


def test_a_step_is_tried_again_when_the_store_refused_but_not_when_the_input_is_bad_nor_in_the_bake() -> None:
    tries: list[str] = []

    def fails_once(kind: str, error: type[Exception]) -> str:
        tries.append(kind)
        if tries.count(kind) == 1:
            raise error(f"{kind} failed")
        return "done"

    @flow
    def steps() -> None:
        assert run_step("mine", fails_once, "storage", StorageError) == "done"
        with pytest.raises(InputError, match="input failed"):
            run_step("plan", fails_once, "input", InputError)
        with pytest.raises(StorageError, match="bake failed"):
            run_step("bake", fails_once, "bake", StorageError)

    steps()
    assert tries == ["storage", "storage", "input", "bake"]


def test_sigterm_ends_a_run_as_cancelled_says_what_was_drained_and_keeps_the_last_figures(settings_file: str) -> None:
    def bake(progress: Progress, stop: Stop) -> None:
        pulse = Pulse(plan_id="plan-1", planned=10)
        with progress.watch(lambda: pulse):
            pulse = Pulse(plan_id="plan-1", answers=4, planned=10, usd=0.5, budget_usd=2.0)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.wait(10)
            stop.check()

    def work(settings: Settings, progress: Progress, stop: Stop) -> list[Any]:
        run_step("bake", bake, progress, stop)
        return []

    @flow
    def stopped() -> State[Any]:
        return run(settings_file, 0, work)

    state = stopped(return_state=True)
    assert state.is_cancelled()
    assert state.message == "drained after 4 of 10 answers; what was finished is kept, run it again to go on"
    artifacts = _artifacts(state.state_details.flow_run_id)
    assert artifacts["bake"] == ("progress", 40.0)
    kind, rows = artifacts["bake-progress"]
    assert kind == "table"
    figures = {row["figure"]: row["value"] for row in json.loads(rows)}
    assert figures["answers"] == "4 of 10"
    assert figures["spent by this worker"] == "$0.500 of $2.00"


def test_doctor_says_that_the_server_is_healthy(tmp_path: Path) -> None:
    address = PREFECT_API_URL.value()
    found = prefect_server(tmp_path, PREFECT_API_URL=address)
    assert (found["state"], found["detail"]) == ("ok", f"{address} is healthy")


def _run_name(run_id: Any) -> str:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).name


def _artifacts(run_id: Any) -> dict[str, tuple[str, Any]]:
    wanted = FlowRunFilter.model_validate({"id": {"any_": [run_id]}})
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(flow_run_filter=wanted)
    return {str(artifact.key): (str(artifact.type), artifact.data) for artifact in found}
