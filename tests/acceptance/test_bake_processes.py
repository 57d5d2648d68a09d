"""Several bake workers on one machine, with real vLLM each: one is killed, all are stopped."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from prebake.errors import EngineError, Interrupted
from prebake.settings import Capacity, Settings
from prebake.settings import Engine as EngineSettings
from prebake.stop import Stop
from storage.store import Store, open_store
from tasks.bake import BakeReport
from tasks.machines import bake_on_machines
from tasks.processes import Processes
from tests.baking import PLAN_ID, add_plan, committed, question, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture
def settings(settings: Settings, engine_settings: EngineSettings) -> Settings:
    """Two engines, small flushes, and leases that a dead worker does not keep for long."""
    small = engine_settings.model_copy(update={"flush_answers": 32, "flush_s": 0.5, "lease_s": 3.0})
    return settings.model_copy(update={"engine": small, "capacity": Capacity(max_machines=2)})


def bake(store: Store, settings: Settings, stop: Stop | None = None) -> BakeReport:
    return bake_on_machines(store, settings, PLAN_ID, run_id="run", make=Processes, stop=stop)


def workers() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "tasks.worker" in child.cmdline()]


def test_two_engines_share_a_plan_and_one_that_is_killed_is_started_again(
    store: Store, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    planned = add_plan(store, settings, [question(n, max_tokens=40) for n in range(900)], shard_size=50)
    with ThreadPoolExecutor(1) as thread:
        baking = thread.submit(bake, store, settings)
        wait_until(lambda: baking.done() or store.ledger.progress(PLAN_ID).rows > 0)
        before = workers()
        assert len(before) == 2
        before[0].kill()
        report = baking.result()
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
    progress = store.ledger.progress(PLAN_ID)
    assert (progress.done, progress.leased, progress.pending) == (18, 0, 0)
    assert report.answers + report.truncated == 900
    assert "a bake worker ended" in caplog.text
    assert workers() == []


def test_a_stop_drains_both_and_gives_their_leases_back(settings: Settings, postgres_url: str) -> None:
    on_postgres = settings.model_copy(update={"store": settings.store.model_copy(update={"ledger_url": postgres_url})})
    stop = Stop()
    with open_store(on_postgres) as store, ThreadPoolExecutor(1) as thread:
        add_plan(store, on_postgres, [question(n) for n in range(64)])
        baking = thread.submit(bake, store, on_postgres, stop)
        wait_until(lambda: baking.done() or store.ledger.progress(PLAN_ID).leased == 2)
        stop.request("the test says so")
        with pytest.raises(Interrupted, match="the test says so"):
            baking.result()
        assert store.ledger.progress(PLAN_ID).leased == 0
    assert workers() == []


def test_workers_drain_when_the_process_that_started_them_is_killed(store: Store, settings: Settings) -> None:
    add_plan(store, settings, [question(n) for n in range(64)])
    code = (
        "import sys; from prebake.settings import Settings; from storage.store import open_store\n"
        "from tasks.machines import bake_on_machines\nfrom tasks.processes import Processes\n"
        "settings = Settings.model_validate_json(sys.argv[1])\n"
        "with open_store(settings) as store:\n"
        "    bake_on_machines(store, settings, 'plan-1', run_id='run', make=Processes)"
    )
    parent = psutil.Popen([sys.executable, "-c", code, settings.model_dump_json()])
    wait_until(lambda: parent.poll() is not None or store.ledger.progress(PLAN_ID).leased == 2)
    family = parent.children(recursive=True)
    assert len(family) >= 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=300)
    assert alive == []
    assert store.ledger.progress(PLAN_ID).leased == 0


def test_a_model_that_is_not_there_is_told_in_one_line(store: Store, settings: Settings) -> None:
    add_plan(store, settings, [question(1)], shard_size=1)
    nowhere = settings.engine.model_copy(update={"model": "/no/such/model"})
    with pytest.raises(EngineError, match="no such folder") as raised:
        bake(store, settings.model_copy(update={"engine": nowhere}))
    assert "\n" not in str(raised.value)
