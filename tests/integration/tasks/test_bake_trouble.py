"""Baking while the ledger, the store, the disk or the clock misbehave: nothing is lost, nothing is baked twice."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import Partial
from prebake.errors import Interrupted, SettingsError, StorageError
from prebake.settings import Settings
from prebake.stop import Stop
from storage.ledger_database import LedgerDatabase
from storage.objects_local import LocalObjects
from storage.store import Store, open_store
from tasks import bake_parts
from tasks.bake import BakeReport, bake
from tasks.bake_parts import read_partials
from tests.baking import PLAN_ID, add_plan, committed, question
from tests.conftest import serve_postgres
from tests.parrot_engine import ParrotEngine
from tests.refusing_proxy import serve_refusing


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Many small flushes."""
    engine = settings.engine.model_copy(update={"flush_answers": 8, "flush_s": 0.2, "lease_s": 5.0})
    return settings.model_copy(update={"engine": engine})


def _bake(store: Store, settings: Settings, engine: ParrotEngine, owner: str = "me", **options: Any) -> BakeReport:
    return bake(store, settings, PLAN_ID, run_id="run-1", owner=owner, engine=engine, **options)


def _questions(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [question(number, **fields) for number in range(count)]


def _bake_until(store: Store, settings: Settings, engine: ParrotEngine, tokens: int) -> None:
    """Bake until so many tokens are generated, then stop politely."""
    stop = Stop()
    engine.alarm = (tokens, lambda: stop.request("the test says so"))
    with pytest.raises(Interrupted):
        _bake(store, settings, engine, stop=stop)


@pytest.mark.slow
def test_a_ledger_that_is_away_is_waited_for_while_the_engine_goes_on(settings: Settings) -> None:
    with serve_postgres() as server:
        database = settings.store.model_copy(update={"ledger_url": server.url})
        settings = settings.model_copy(update={"store": database})
        with open_store(settings) as store:
            planned = add_plan(store, settings, _questions(200, max_tokens=20), shard_size=20)
            engine = ParrotEngine(step_s=0.01)

            def cut() -> None:
                while engine.tokens < 400:
                    time.sleep(0.01)
                server.stop()
                time.sleep(30)  # longer than the lease
                server.start()

            cutting = threading.Thread(target=cut)
            cutting.start()
            report = _bake(store, settings, engine)
            cutting.join()
            assert report.answers + report.truncated == 200
            assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
            assert engine.tokens == 200 * 20  # nothing was generated twice


def test_a_store_that_refuses_one_call_in_ten_bakes_the_whole_plan(settings: Settings, s3_settings: Settings) -> None:
    with serve_refusing(s3_settings.store.s3_endpoint_url) as proxy:
        refusing = s3_settings.store.model_copy(update={"s3_endpoint_url": proxy.url})
        settings = s3_settings.model_copy(update={"store": refusing, "engine": settings.engine})
        with open_store(settings) as store:
            planned = add_plan(store, settings, _questions(150), shard_size=10)
            _bake_until(store, settings, ParrotEngine(), 500)
            _bake(store, settings, ParrotEngine())
            assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
        assert proxy.refused > 5


def _jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the machine's clock, as far as the ledger asks it, forward by so many hours."""
    hours = [0.0]

    def now(self: LedgerDatabase, connection: object) -> datetime:
        return datetime.now(UTC) + timedelta(hours=hours[0])

    monkeypatch.setattr(LedgerDatabase, "now", now)
    return lambda jump: hours.__setitem__(0, jump)


@pytest.mark.parametrize("hours", [5.0, -5.0])
def test_a_clock_that_jumps_while_two_workers_bake_doubles_nothing(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    set_clock = _jump(monkeypatch)
    planned = add_plan(store, settings, _questions(120, max_tokens=20), shard_size=20)
    engines = [ParrotEngine(step_s=0.01), ParrotEngine(step_s=0.01)]
    workers = [
        threading.Thread(target=_bake, args=(store, settings, engine, f"worker-{number}"))
        for number, engine in enumerate(engines)
    ]
    for worker in workers:
        worker.start()
    while sum(engine.tokens for engine in engines) < 300:
        time.sleep(0.01)
    set_clock(hours)
    for worker in workers:
        worker.join(timeout=120)
        assert not worker.is_alive()
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
    assert store.ledger.progress(PLAN_ID).done == 6


def test_a_shard_of_a_dead_worker_is_taken_over_even_if_the_clock_was_set_back_since(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock = _jump(monkeypatch)
    planned = add_plan(store, settings, _questions(8), shard_size=8)
    assert store.ledger.take_shard(PLAN_ID, "dead", 60) is not None
    set_clock(-5)
    _bake(store, settings, ParrotEngine())
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)


def test_two_workers_of_one_name_share_the_plan_like_any_others(store: Store, settings: Settings) -> None:
    planned = add_plan(store, settings, _questions(120, max_tokens=20), shard_size=10)
    engines = [ParrotEngine(step_s=0.005), ParrotEngine(step_s=0.005)]
    workers = [threading.Thread(target=_bake, args=(store, settings, engine, "twin")) for engine in engines]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert not worker.is_alive()
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
    assert sum(engine.tokens for engine in engines) == 120 * 20


def test_partial_answers_outlive_a_second_stop_that_came_before_they_were_gone_on_with(
    store: Store, settings: Settings
) -> None:
    planned = add_plan(store, settings, _questions(16, max_tokens=50), shard_size=16)
    first = ParrotEngine(capacity=16)
    _bake_until(store, settings, first, 160)
    kept = read_partials(store, PLAN_ID, 0)
    assert kept.keys() == set(planned)
    second = ParrotEngine(capacity=2)  # two prompts in flight: the others never get their turn
    _bake_until(store, settings, second, 2)
    third = ParrotEngine(capacity=16)
    _bake(store, settings, third)
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
    assert first.tokens + second.tokens + third.tokens == 16 * 50


def test_tokens_of_unfinished_answers_are_kept_from_time_to_time_for_whoever_comes_after_a_kill(
    store: Store, settings: Settings
) -> None:
    often = settings.model_copy(update={"engine": settings.engine.model_copy(update={"partials_s": 0.05})})
    planned = add_plan(store, settings, _questions(8, max_tokens=50), shard_size=8)
    engine = ParrotEngine(step_s=0.01)
    kept = dict[bytes, Partial]()

    def look() -> None:  # by now, 0.2 s and more after the start, the writer's thread has been told to keep them
        give_up = time.monotonic() + 60
        while not kept and time.monotonic() < give_up:
            kept.update(read_partials(store, PLAN_ID, 0))

    engine.alarm = (20 * 8, look)
    report = _bake(store, often, engine)
    assert kept.keys() == set(planned)
    assert all(0 < len(partial.token_ids) < 50 for partial in kept.values())
    assert engine.tokens == 8 * 50
    assert report.resumed_tokens > 0
    assert list(store.objects.list("partials/")) == []


def test_a_store_that_refuses_once_at_the_stop_still_gets_the_partial_answers(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plan(store, settings, _questions(8, max_tokens=50), shard_size=8)
    refusals = iter([True])
    write = LocalObjects.write

    def refuse_once(self: LocalObjects, key: str, data: bytes) -> str:
        if key.startswith(bake_parts.PARTIALS) and next(refusals, False):
            raise StorageError("the store is away")
        return write(self, key, data)

    monkeypatch.setattr(LocalObjects, "write", refuse_once)
    _bake_until(store, settings, ParrotEngine(), 80)
    assert len(read_partials(store, PLAN_ID, 0)) == 8


def test_partial_answers_of_a_shard_that_was_taken_over_are_left_to_its_new_holder(
    store: Store, settings: Settings
) -> None:
    add_plan(store, settings, _questions(8, max_tokens=50), shard_size=8)
    brief = settings.engine.model_copy(update={"lease_s": 0.4})
    with bake_parts.PartWriter(store, brief, PLAN_ID, "sleeper", Stop()) as writer:
        shard = writer.take()
        assert shard is not None
        writer.expect(shard, 8)
        store.ledger.release(shard.lease)  # behind its back, as if it had run out
        assert store.ledger.take_shard(PLAN_ID, "new holder", 60) is not None
        while not shard.lost:
            time.sleep(0.01)
        writer.put_partial(shard, b"x" * 16, Partial("parrot", (1, 2), 0.0))
    assert read_partials(store, PLAN_ID, 0) == {}


def test_whatever_ends_a_bake_the_tokens_of_its_unfinished_answers_are_kept(store: Store, settings: Settings) -> None:
    named = [question(number, max_tokens=50) for number in range(8)]
    planned = add_plan(store, settings, named, shard_size=8)

    class Breaking(ParrotEngine):
        def step(self) -> list[Any]:
            if self.tokens >= 80:
                raise SettingsError("something else went wrong")
            return super().step()

    first, second = Breaking(), ParrotEngine()
    with pytest.raises(SettingsError, match="something else"):
        _bake(store, settings, first)
    assert first.in_flight == 0
    _bake(store, settings, second)
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
    assert first.tokens + second.tokens == 8 * 50


_PROGRAM = """
import sys
from prebake.errors import PrebakeError
from prebake.settings import Settings
from storage.store import open_store
from tasks import bake_parts
from tasks.bake import bake
from tests.parrot_engine import ParrotEngine
bake_parts._BACK_OFF_S = (0.1, 0.1)  # as if a minute had passed
settings = Settings.model_validate_json(sys.argv[1])
try:
    with open_store(settings) as store:
        bake(store, settings, "plan-1", run_id="run", owner="me", engine=ParrotEngine(noise=60_000))
except PrebakeError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_a_full_disk_ends_the_bake_with_a_clear_line_and_the_next_run_goes_on(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    planned = add_plan(store, settings, _questions(64, max_tokens=200), shard_size=32)
    _bake_until(store, settings, ParrotEngine(), 8 * 200)
    before = committed(store)
    assert len(before) == 8
    # One part for all that is left of a shard: more than the disk has room for.
    large = settings.engine.model_copy(update={"flush_answers": 1000, "flush_s": 60.0})
    settings = settings.model_copy(update={"engine": large})

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a full disk is an error of write(), not a signal
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, settings.model_dump_json()],
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit,
        check=False,
    )
    assert run.returncode == 4, run.stderr
    assert "cannot be written: File too large" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert list(Path(tmp_path / "store").rglob("*.new")) == []
    assert committed(store) == before
    assert store.ledger.progress(PLAN_ID).leased == 0
    _bake(store, settings, ParrotEngine())
    assert Counter(row["fingerprint"] for row in committed(store)) == Counter(planned)
