"""A bake on a real Ray cluster of this machine, with real vLLM: what is killed is baked again, a stop drains."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from prebake.errors import EngineError
from prebake.settings import Engine as EngineSettings
from prebake.settings import Settings
from storage.store import Store
from tests.baking import PLAN_ID, add_plan, committed, question, wait_until

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def folder() -> Iterator[str]:
    """All that Ray writes is here. Its name is short, because that of a socket below may have 107 bytes."""
    with TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield name


@pytest.fixture(scope="module")
def cluster(folder: str) -> Iterator[None]:
    """A cluster with two CPUs."""
    from tasks.bake_ray import ray_cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", folder)  # Ray keeps a token there
        environment.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)  # a cluster elsewhere has it not from us
        with ray_cluster("local", num_cpus=2, object_store_memory=100 * 2**20, _temp_dir=folder):
            yield


@pytest.fixture
def settings(settings: Settings, engine_settings: EngineSettings) -> Settings:
    """Small flushes, and leases that a dead worker does not keep for long."""
    small = engine_settings.model_copy(update={"flush_answers": 32, "flush_s": 0.5, "lease_s": 3.0})
    return settings.model_copy(update={"engine": small})


def worker_pids(settings: Settings) -> set[int]:
    """The processes that hold leases, as the ledger knows them."""
    with closing(sqlite3.connect(Path(settings.store.root) / "ledger.db")) as ledger:
        owners = ledger.execute("select distinct owner from shards where status = 'leased'").fetchall()
    return {int(owner.rpartition(":")[2]) for (owner,) in owners}


def test_workers_use_the_allocator_that_gives_memory_back(cluster: None) -> None:
    import ray

    def allocator() -> str:
        import pyarrow

        return str(pyarrow.default_memory_pool().backend_name)

    assert ray.get(ray.remote(allocator).remote()) == "system"


def test_an_actor_that_is_killed_costs_its_leases_and_no_answer(
    cluster: None, store: Store, settings: Settings
) -> None:
    from tasks.bake_ray import bake_on_ray

    planned = add_plan(store, settings, [question(n, max_tokens=40) for n in range(600)], shard_size=100)
    with ThreadPoolExecutor(1) as thread:
        baking = thread.submit(bake_on_ray, store, settings, PLAN_ID, run_id="run", gpus=0)
        wait_until(lambda: baking.done() or store.ledger.progress(PLAN_ID).rows > 0)
        (killed,) = worker_pids(settings)
        os.kill(killed, signal.SIGKILL)
        report = baking.result()
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
    assert report.answers + report.truncated == 600
    progress = store.ledger.progress(PLAN_ID)
    assert (progress.done, progress.leased, progress.pending) == (6, 0, 0)


def test_what_goes_wrong_in_an_actor_is_told_in_one_line(cluster: None, store: Store, settings: Settings) -> None:
    from tasks.bake_ray import bake_on_ray

    add_plan(store, settings, [question(1)], shard_size=1)
    nowhere = settings.engine.model_copy(update={"model": "/no/such/model"})
    with pytest.raises(EngineError, match="no such folder") as raised:
        bake_on_ray(store, settings.model_copy(update={"engine": nowhere}), PLAN_ID, run_id="run", gpus=0)
    assert "\n" not in str(raised.value)


def test_a_folder_where_ray_cannot_start_is_told_in_one_line(folder: str, store: Store, settings: Settings) -> None:
    add_plan(store, settings, [question(1)])
    environment = _environment(settings, f"{folder}/{'long' * 30}")
    command = [sys.executable, "-m", "prebake", "bake", "--ray", "local", "--gpus", "0"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    assert "Ray at 'local': cannot be used" in ended.stderr.splitlines()[-1]


def test_sigterm_to_the_command_drains_the_actors(store: Store, settings: Settings, folder: str) -> None:
    add_plan(store, settings, [question(n) for n in range(64)])
    command = subprocess.Popen(
        [sys.executable, "-m", "prebake", "bake", "--ray", "local", "--gpus", "0"],
        env=_environment(settings, folder),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: command.poll() is not None or store.ledger.progress(PLAN_ID).leased > 0)
    command.terminate()
    _, complaint = command.communicate(timeout=300)
    assert command.returncode == 130, complaint
    assert "SIGTERM" in complaint.splitlines()[-1]
    assert store.ledger.progress(PLAN_ID).leased == 0


def _environment(settings: Settings, folder: str) -> dict[str, str]:
    own = {
        "PREBAKE_STORE": settings.store.model_dump_json(),
        "PREBAKE_ENGINE": settings.engine.model_dump_json(),
        "RAY_TMPDIR": folder,
        "HOME": folder,
    }
    return os.environ | own
