"""Prefect as a user meets it: one command brings it up, runs start from the command line, the API and the pages."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from prebake.loading import load
from storage.store import Store, open_store
from storage.workers import Worker
from tests.conftest import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

NOW = datetime.now(UTC)
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
YESTERDAY = NOW.date() - timedelta(days=1)
BROWSER_ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class Site:
    """Prefect brought up by our command."""

    url: str
    settings_file: Path
    home: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """The server's answer; asked again on 503, its word for a busy SQLite, as Prefect's own client does."""
        for wait_s in (*range(1, 6), 0):
            response = httpx.request(method, f"{self.url}/api{path}", json=body, timeout=120)
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or not wait_s:
                break
            time.sleep(wait_s)
        response.raise_for_status()
        return response.json() if response.content else None

    def deployment(self, name: str) -> Any:
        return self.get(f"/deployments/name/{name}/{name}")

    def switch(self, deployment: Any, schedule: Any, *, active: bool) -> None:
        self._ask("PATCH", f"/deployments/{deployment['id']}/schedules/{schedule['id']}", {"active": active})

    def start(self, name: str, **parameters: Any) -> str:
        body = {"parameters": self.deployment(name)["parameters"] | parameters, "state": {"type": "SCHEDULED"}}
        run_id: str = self.post(f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)["id"]
        return run_id

    def wait_for(self, run_id: str, state: str) -> Any:
        return _until(lambda: self._ended(run_id), f"run {run_id} to end as {state}", state)

    def _ended(self, run_id: str) -> Any:
        run = self.get(f"/flow_runs/{run_id}")
        return run if run["state"]["type"] in FINAL else None

    def workers(self) -> list[Any]:
        """The bake workers' runs, oldest first."""
        wanted = {"deployments": {"name": {"any_": ["bake-worker"]}}, "sort": "START_TIME_ASC"}
        found: list[Any] = self.post("/flow_runs/filter", wanted)
        return found

    def logs(self, run_id: str) -> str:
        found = self.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}})
        return "\n".join(log["message"] for log in found)

    def artifacts(self, run_id: str) -> dict[str, Any]:
        found = self.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
        return {artifact["key"]: artifact for artifact in found}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The documented command in a process of its own, with a fresh home."""
    folder = tmp_path_factory.mktemp("prefect")
    settings_file = _write_settings(folder, 30, "[plan]\nbudget_answers = 0\n")
    port = free_port()
    process = _bring_up(folder, settings_file, "--port", str(port))
    yield Site(f"http://127.0.0.1:{port}", settings_file, folder / "store" / "prefect", process)
    process.send_signal(signal.SIGTERM)
    process.wait(90)


def test_a_night_started_from_the_command_line_completes_and_leaves_its_artifacts(site: Site) -> None:
    command = (sys.executable, "-m", "prefect", "deployment", "run", "nightly/nightly", "--param", 'routes=["banking"]')
    environment = os.environ | {"PREFECT_API_URL": f"{site.url}/api", "PREFECT_HOME": str(site.home / "client")}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    run = site.wait_for(re.findall(r"UUID: (\S+)", said)[0], "COMPLETED")
    due = datetime.fromisoformat(run["expected_start_time"])
    assert run["name"] == f"nightly {due.date() - timedelta(days=1)} banking"
    assert set(site.artifacts(run["id"])) == {"night", "night-picture", "plan", "plan-decisions"}


def test_the_schedule_is_off_until_somebody_switches_it_on_and_a_second_up_leaves_it_on(
    site: Site, tmp_path: Path
) -> None:
    nightly = site.deployment("nightly")
    (schedule,) = nightly["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 2 * * *", "UTC")
    assert not schedule["active"]
    site.switch(nightly, schedule, active=True)
    second = _bring_up(tmp_path, site.settings_file, "--home", str(tmp_path), "--server", site.url)
    second.send_signal(signal.SIGTERM)
    assert second.wait(90) == 0
    assert site.deployment("nightly")["schedules"][0]["active"]
    site.switch(nightly, schedule, active=False)


def test_a_night_cancelled_while_it_waits_drains_and_the_next_one_completes(site: Site) -> None:
    with open_store(load(site.settings_file)) as store, store.ledger.lock("night", "the other night", 60, 0):
        run_id = site.start("nightly")
        _until(lambda: "waiting: " in site.logs(run_id), "the night to wait for the other one")
        assert "the other night" in site.logs(run_id)
        _cancel(site, run_id)
        assert "drained" in site.wait_for(run_id, "CANCELLED")["state"]["message"]
    site.wait_for(site.start("nightly"), "COMPLETED")


def test_a_night_cancelled_in_the_middle_of_the_bake_loses_nothing_and_the_next_run_goes_on(
    site: Site, tiny_model: Path, tmp_path: Path
) -> None:
    model = (
        f'[engine]\nmodel = "{tiny_model}"\nflush_s = 0.5\n[engine.args]\nenforce_eager = true\n'
        'dtype = "bfloat16"\nmax_model_len = 256\nmax_num_seqs = 16\n'
    )
    settings_file = _write_settings(tmp_path, 1500, model)
    run_id = site.start("nightly", settings_file=str(settings_file))
    _until(lambda: (site.artifacts(run_id).get("bake") or {"data": 0})["data"] > 0, "the bake to be under way")
    _cancel(site, run_id)
    drained = site.wait_for(run_id, "CANCELLED")["state"]["message"]
    done, total = (int(number.replace(",", "")) for number in re.findall(r"after (\S+) of (\S+) answers", drained)[0])
    assert 0 < done < total == 1500
    site.wait_for(site.start("nightly", settings_file=str(settings_file)), "COMPLETED")
    with open_store(load(settings_file)) as store:
        keys = store.answers.scan().to_table(columns=["fingerprint"])["fingerprint"].to_pylist()
    assert len(keys) == len(set(keys)) == 1500


def test_a_night_shares_its_bake_among_workers_replaces_a_killed_one_and_drains_them_when_cancelled(
    site: Site, tiny_model: Path, tmp_path: Path
) -> None:
    model = (
        f'[engine]\nmodel = "{tiny_model}"\nflush_s = 0.5\nlease_s = 20\n[engine.args]\nenforce_eager = true\n'
        'dtype = "bfloat16"\nmax_model_len = 256\n[plan]\nshard_size = 50\n'
    )
    fast = _write_settings(tmp_path, 1500, model)
    slow = tmp_path / "slow.toml"  # one prompt at a time: minutes of work, so that nothing is over before it is killed
    slow.write_text(
        fast.read_text().replace("max_model_len = 256", "max_model_len = 256\nmax_num_seqs = 1")
        + '[capacity]\nworkers = "prefect"\nmax_machines = 2\n'
    )
    with open_store(load(slow)) as store:
        night = site.start("nightly", settings_file=str(slow))
        plan_id = _until(lambda: _plan_of(site), "the night to start its workers")
        worker = _until(lambda: _at_work(store, plan_id), "a worker to bake")[0]
        pid, run_id = re.findall(r":(\d+)/(\S+)", worker.owner)[0]
        assert len(site.workers()) == 2
        os.kill(int(pid), signal.SIGKILL)
        site.wait_for(run_id, "CRASHED")
        _until(lambda: len(site.workers()) > 2, "another worker in its place")
        _cancel(site, night)
        site.wait_for(night, "CANCELLED")
        _until(lambda: all(run["state"]["type"] in FINAL for run in site.workers()), "the workers to have drained")
        before = {part.key for part in store.ledger.parts(plan_id)}
        assert before
        site.wait_for(site.start("nightly", settings_file=str(fast)), "COMPLETED")
        assert before < {part.key for part in store.ledger.parts(plan_id)}
        keys = store.answers.scan().to_table(columns=["fingerprint"])["fingerprint"].to_pylist()
    assert len(keys) == len(set(keys)) == 1500


def test_the_page_starts_a_backfill_from_its_form(site: Site, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not on the PATH (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_ARGS)
        context = browser.new_context(viewport={"width": 1400, "height": 1300}, timezone_id="UTC", locale="en-US")
        loopback = (site.url, "data:", "blob:")
        context.route("**/*", lambda r: r.continue_() if r.request.url.startswith(loopback) else r.abort())
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{site.url}/v2/deployments")
        page.get_by_role("link", name="backfill", exact=True).first.click()
        page.get_by_role("button", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Custom run").click()
        for label in ("start", "end"):
            _pick_today(page, label)
        page.screenshot(path=str(tmp_path / "form.png"))
        run_id = _submit(page)
        run = site.wait_for(run_id, "COMPLETED")
        assert run["name"] == f"backfill {NOW.date()} to {NOW.date()}"
        page.goto(f"{site.url}/runs/flow-run/{run_id}")
        page.get_by_text(run["name"]).first.wait_for()
        page.goto(f"{site.url}/artifacts/artifact/{site.artifacts(run_id)['night']['id']}")
        page.get_by_role("heading", name="Decisions").wait_for()
        page.screenshot(path=str(tmp_path / "night.png"))
        browser.close()


def test_a_port_that_is_taken_and_a_server_that_is_not_there_are_said_in_one_line(site: Site, tmp_path: Path) -> None:
    taken = _up(tmp_path, site.settings_file, "--port", site.url.rsplit(":", 1)[1])
    assert taken.wait(60) == 1
    away = _up(tmp_path, site.settings_file, "--server", f"http://127.0.0.1:{free_port()}")
    assert away.wait(60) == 1
    lines = (tmp_path / "up.log").read_text().splitlines()
    assert "is taken" in lines[0]
    assert "no Prefect server answers" in lines[1]


def test_a_signal_ends_server_and_worker_in_order(site: Site) -> None:
    """The last test of the page: it ends what the others used."""
    site.process.send_signal(signal.SIGTERM)
    assert site.process.wait(90) == 0
    with pytest.raises(httpx.ConnectError):
        site.get("/health")


def _write_settings(folder: Path, prompts: int, more: str) -> Path:
    lines = [
        json.dumps(
            {
                "timestamp": f"{YESTERDAY}T{number % 24:02}:00:00Z",
                "user": f"user-{user}",
                "model": "m",
                "max_tokens": 128,
                "messages": [{"role": "user", "content": f"How do I reset password {number}?"}],
            }
        )
        for number in range(prompts)
        for user in range(3)
    ]
    (folder / "log.jsonl").write_text("\n".join(lines))
    file = folder / "prebake.toml"
    ingest = f'[ingest]\npaths = ["{folder}/log.jsonl"]\n'
    file.write_text(f'[store]\nroot = "store"\n{ingest}{more}[[routes]]\nname = "banking"\nscope = "shared"\n')
    return file


def _up(folder: Path, settings_file: Path, *options: str) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-m", "prebake", "--settings", str(settings_file), "prefect", *options)
    with (folder / "up.log").open("ab") as log:
        return subprocess.Popen(command, stderr=log)


def _bring_up(folder: Path, settings_file: Path, *options: str) -> subprocess.Popen[bytes]:
    process = _up(folder, settings_file, *options)
    said = folder / "up.log"
    try:
        _until(lambda: "Prefect is up" in said.read_text() or process.poll() is not None, "Prefect to come up")
        assert process.poll() is None, said.read_text()
    except BaseException:
        process.terminate()
        raise
    return process


def _cancel(site: Site, run_id: str) -> None:
    site.post(f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})


def _until(found: Callable[[], Any], what: str, state: str = "") -> Any:
    give_up = time.monotonic() + 600
    while time.monotonic() < give_up:
        if result := found():
            assert not state or result["state"]["type"] == state, result["state"]
            return result
        time.sleep(0.5)
    raise AssertionError(f"waited in vain for {what}")


def _plan_of(site: Site) -> str:
    return next((run["parameters"]["plan_id"] for run in site.workers()), "")


def _at_work(store: Store, plan_id: str) -> list[Worker]:
    return [worker for worker in store.ledger.workers.of_plan(plan_id) if worker.alive and worker.answers]


def _pick_today(page: Any, label: str) -> None:
    page.get_by_label(label, exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=f"{NOW:%B} {NOW.day}").first.click()
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")


def _submit(page: Any) -> str:
    page.wait_for_timeout(1500)  # the form asks the server to check it a moment after the last change
    with page.expect_response(lambda r: r.url.endswith("/create_flow_run")) as created:
        page.get_by_role("button", name="Submit").click()
    assert created.value.status == 201, created.value.text()
    run_id: str = created.value.json()["id"]
    return run_id
