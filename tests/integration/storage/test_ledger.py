"""The ledger on SQLite and PostgreSQL: leases, fences, parts, runs."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text, update

from prebake.errors import ConflictError, InputError, Interrupted, LeaseLostError, SettingsError, StorageError
from prebake.settings import Settings
from prebake.settings import Store as StoreSettings
from storage import ledger_schema as schema
from storage.ledger import Ledger, Part, Progress, open_ledger
from tests.integration.storage.race import end, go, line, race, spawn

PART = Part("parts/p/0/a", rows=10, bytes=100, sha256="ab")


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = open_ledger(ledger_url)
    yield opened
    opened.close()


@pytest.fixture
def shared(ledger_url: str, tmp_path: Path) -> Settings:
    """Settings by which other processes open the same ledger."""
    open_ledger(ledger_url).close()
    return Settings(store=StoreSettings(root=str(tmp_path / "store"), ledger_url=ledger_url))


def run_out(ledger_url: str) -> None:
    """Let every lease run out now, as if its time had passed."""
    engine = create_engine(ledger_url)
    with engine.begin() as connection:
        connection.execute(update(schema.shards).values(lease_until=datetime.now(UTC) - timedelta(seconds=1)))
    engine.dispose()


def test_a_run_is_noted_when_it_begins_and_when_it_ends(ledger: Ledger) -> None:
    first = ledger.start_run("nightly", date(2026, 1, 2), {"routes": ["faq"]})
    second = ledger.start_run("bake", None, {})
    ledger.finish_run(first, "completed", {"answers": 3})
    newest, oldest = ledger.runs()
    assert (newest.run_id, newest.status, newest.day, newest.finished_at) == (second, "running", None, None)
    assert (oldest.kind, oldest.day, oldest.params) == ("nightly", date(2026, 1, 2), {"routes": ["faq"]})
    assert (oldest.status, oldest.summary) == ("completed", {"answers": 3})
    assert oldest.finished_at is not None
    assert timedelta(0) <= oldest.finished_at - oldest.started_at < timedelta(minutes=1)
    assert first < second


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (None, "completed", {"answers": 3}),
        (Interrupted("SIGTERM"), "stopped", {"error": str(Interrupted("SIGTERM"))}),
        (InputError("no such plan"), "failed", {"error": "no such plan"}),
        (KeyError("x"), "failed", {"error": "KeyError: 'x'"}),
    ],
)
def test_a_run_ends_with_its_block(ledger: Ledger, error: Exception | None, status: str, told: dict[str, Any]) -> None:
    summary: dict[str, Any] = {}
    with suppress(Exception), ledger.running("bake", None, {}, summary):
        summary["answers"] = 3
        if error is not None:
            raise error
    (run,) = ledger.runs()
    assert (run.status, run.summary) == (status, told)


def test_each_shard_is_given_to_one_worker_and_none_is_left_over(ledger: Ledger) -> None:
    ledger.add_shards("p", {0: 5, 1: 5})
    ledger.add_shards("other", {0: 1})
    taken = [ledger.take_shard("p", "worker", 60) for _ in range(3)]
    assert [lease and lease.shard_id for lease in taken] == [0, 1, None]


def test_adding_shards_again_changes_nothing_of_those_that_are_there(ledger: Ledger) -> None:
    ledger.add_shards("p", {0: 5})
    lease = ledger.take_shard("p", "worker", 60)
    assert lease is not None
    ledger.finish_shard(lease)
    ledger.add_shards("p", {0: 5, 1: 7})
    assert ledger.progress("p") == Progress(shards=2, pending=1, leased=0, done=1, answers=12, answers_done=5, rows=0)


def test_a_plan_that_nobody_knows_has_no_shards_and_no_parts(ledger: Ledger) -> None:
    assert ledger.progress("nobody") == Progress(0, 0, 0, 0, 0, 0, 0)
    assert ledger.parts("nobody") == []
    assert ledger.take_shard("nobody", "worker", 60) is None


def test_a_lease_that_ran_out_is_taken_over_after_the_pending_ones(ledger: Ledger, ledger_url: str) -> None:
    ledger.add_shards("p", {0: 1, 1: 1})
    first = ledger.take_shard("p", "sleeper", 60)
    run_out(ledger_url)
    second, third = ledger.take_shard("p", "b", 60), ledger.take_shard("p", "c", 60)
    assert first is not None
    assert second is not None
    assert third is not None
    assert (second.shard_id, second.attempt) == (1, 1)
    assert (third.shard_id, third.attempt, third.fence) == (0, 2, first.fence + 1)


def test_who_lost_the_lease_can_commit_nothing(ledger: Ledger, ledger_url: str) -> None:
    ledger.add_shards("p", {0: 10})
    lost = ledger.take_shard("p", "sleeper", 60)
    run_out(ledger_url)
    taken = ledger.take_shard("p", "other", 60)
    assert lost is not None
    assert taken is not None
    for act in (lambda: ledger.add_part(lost, PART), lambda: ledger.finish_shard(lost), lambda: ledger.heartbeat(lost)):
        with pytest.raises(LeaseLostError, match="sleeper"):
            act()
    ledger.release(lost)  # must not free the other's lease
    assert ledger.take_shard("p", "third", 60) is None
    assert ledger.parts("p") == []
    ledger.add_part(taken, PART)
    ledger.finish_shard(taken)
    with pytest.raises(LeaseLostError):
        ledger.finish_shard(lost)


def test_a_lease_that_ran_out_but_was_not_taken_over_is_still_good(ledger: Ledger, ledger_url: str) -> None:
    ledger.add_shards("p", {0: 10})
    lease = ledger.take_shard("p", "slow", 60)
    assert lease is not None
    run_out(ledger_url)
    ledger.add_part(lease, PART)
    assert ledger.heartbeat(lease).lease_until > datetime.now(UTC)
    assert ledger.take_shard("p", "other", 60) is None


def test_a_released_shard_is_free_at_once_and_has_not_failed(ledger: Ledger) -> None:
    ledger.add_shards("p", {0: 10})
    for _ in range(3):
        lease = ledger.take_shard("p", "preempted", 60)
        assert lease is not None
        assert lease.attempt == 1
        ledger.release(lease)
    with pytest.raises(LeaseLostError):
        ledger.add_part(lease, PART)


def test_a_part_counts_once_however_often_it_is_added(ledger: Ledger) -> None:
    ledger.add_shards("p", {0: 10, 1: 10})
    lease = ledger.take_shard("p", "worker", 60)
    assert lease is not None
    ledger.add_part(lease, PART)
    ledger.add_part(lease, PART)
    ledger.add_part(lease, Part("parts/p/0/b", 5, 50, "cd"))
    assert [part.key for part in ledger.parts("p")] == ["parts/p/0/a", "parts/p/0/b"]
    assert ledger.parts("p", 0)[0] == PART
    assert ledger.parts("p", 1) == []
    assert ledger.progress("p").rows == 15
    with pytest.raises(ConflictError, match="parts/p/0/a"):
        ledger.add_part(lease, Part(PART.key, 1, 1, "another"))


def test_finishing_twice_is_fine_and_a_finished_shard_is_never_given_again(ledger: Ledger, ledger_url: str) -> None:
    ledger.add_shards("p", {0: 10})
    lease = ledger.take_shard("p", "worker", 60)
    assert lease is not None
    ledger.finish_shard(lease)
    ledger.finish_shard(lease)
    ledger.release(lease)
    run_out(ledger_url)
    assert ledger.take_shard("p", "other", 60) is None
    assert ledger.progress("p").done == 1


def test_processes_that_take_at_once_share_the_shards_without_overlap(shared: Settings) -> None:
    ledger = open_ledger(shared.store.ledger_url)
    ledger.add_shards("p", dict.fromkeys(range(40), 1))
    told = race(
        shared,
        """
from storage.ledger import Part, open_ledger
ledger = open_ledger(settings.store.ledger_url)
ready()
taken = []
while lease := ledger.take_shard("p", f"worker {number}", 60):
    ledger.add_part(lease, Part(f"{lease.shard_id}", 1, 1, "x"))
    ledger.finish_shard(lease)
    taken.append(lease.shard_id)
tell(taken)
""",
        processes=3,
    )
    assert sorted(shard for taken in told for shard in taken) == list(range(40))
    assert ledger.progress("p") == Progress(40, 0, 0, 40, 40, 40, 40)
    ledger.close()


def test_a_worker_halted_past_its_lease_can_commit_nothing_when_it_wakes(shared: Settings) -> None:
    worker = spawn(
        shared,
        """
from storage.ledger import Part, open_ledger
ledger = open_ledger(settings.store.ledger_url)
lease = ledger.take_shard("p", "sleeper", 0.5)
ready()
try:
    ledger.add_part(lease, Part("late", 1, 1, "x"))
    tell("committed")
except LeaseLostError:
    tell("lost")
""",
    )
    ledger = open_ledger(shared.store.ledger_url)
    try:
        ledger.add_shards("p", {0: 1})
        assert line(worker) == "ready"
        worker.send_signal(signal.SIGSTOP)
        while (taken := ledger.take_shard("p", "other", 60)) is None:
            time.sleep(0.05)
        ledger.add_part(taken, Part("in time", 1, 1, "y"))
        worker.send_signal(signal.SIGCONT)
        go(worker)
        assert line(worker) == '"lost"'
        assert [part.key for part in ledger.parts("p")] == ["in time"]
    finally:
        end([worker])
        ledger.close()


def test_processes_that_open_a_new_ledger_at_once_both_find_its_tables(ledger_url: str, tmp_path: Path) -> None:
    settings = Settings(store=StoreSettings(root=str(tmp_path / "store"), ledger_url=ledger_url))
    code = """
from storage.ledger import open_ledger
import alembic.command
ready()
tell(len(open_ledger(settings.store.ledger_url).runs()))
"""
    assert race(settings, code) == [0, 0]


def test_the_migrations_make_the_tables_that_the_code_reads(ledger: Ledger, ledger_url: str) -> None:
    config = Config()
    config.set_main_option("script_location", "storage:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == schema.REVISION
    engine = create_engine(ledger_url)
    found = inspect(engine)
    for table in schema.metadata.sorted_tables:
        assert [column["name"] for column in found.get_columns(table.name)] == [column.name for column in table.columns]
        assert {index["name"] for index in found.get_indexes(table.name)} == {index.name for index in table.indexes}
    engine.dispose()


def test_a_ledger_of_a_newer_prebake_is_refused_and_left_alone(ledger: Ledger, ledger_url: str) -> None:
    engine = create_engine(ledger_url)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StorageError, match="newer prebake"):
        open_ledger(ledger_url)


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/x", "oracle://x", "nosuch://x"])
def test_a_url_that_cannot_be_a_ledger_is_a_setting_to_correct(url: str) -> None:
    with pytest.raises(SettingsError, match=r"store\.ledger_url"):
        open_ledger(url)


def test_a_server_that_stays_away_is_named_without_its_password() -> None:
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9/x") as caught:
        open_ledger("postgresql://user:secret@127.0.0.1:9/x", patience_s=0.2)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("this is not a database, it is a text " * 100)
    with pytest.raises(StorageError, match="not a database"):
        open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def test_a_locked_sqlite_ledger_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    ledger = open_ledger(f"sqlite:///{file}", patience_s=0.2)
    with sqlite3.connect(file) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="locked"):
            ledger.start_run("nightly", None, {})
        assert ledger.runs() == []  # readers are not held up
        other.rollback()
    ledger.start_run("nightly", None, {})
    ledger.close()


def test_calls_go_on_after_the_server_dropped_every_connection(postgres_url: str) -> None:
    ledger = open_ledger(postgres_url)
    ledger.add_shards("p", {0: 1})
    lease = ledger.take_shard("p", "worker", 60)
    assert lease is not None
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    engine.dispose()
    ledger.add_part(lease, PART)
    assert ledger.parts("p") == [PART]
    ledger.close()
