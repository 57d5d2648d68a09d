"""Locks: one holder, who keeps it while alive and frees it when gone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, update

from prebake.errors import BusyError, LeaseLostError
from prebake.settings import Settings
from prebake.settings import Store as StoreSettings
from storage.ledger import Ledger, open_ledger
from storage.ledger_schema import locks
from tests.integration.storage.race import end, line, race, spawn


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = open_ledger(ledger_url)
    yield opened
    opened.close()


@pytest.fixture
def shared(ledger_url: str, tmp_path: Path) -> Settings:
    open_ledger(ledger_url).close()
    return Settings(store=StoreSettings(root=str(tmp_path / "store"), ledger_url=ledger_url))


def test_the_second_is_told_who_holds_the_lock_where_and_since_when(ledger: Ledger) -> None:
    with ledger.lock("night", "vm-7:4711", 60, 0):
        with pytest.raises(BusyError, match=r"'night' is held by vm-7:4711 on \S+ since 20\d\d-\d\d-\d\d "):
            ledger.lock("night", "me", 60, 0).__enter__()
        with ledger.lock("another", "me", 60, 0):
            pass
    with ledger.lock("night", "me", 60, 0):
        pass


def test_a_block_that_fails_frees_the_lock(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError), ledger.lock("night", "me", 60, 0):
        raise ZeroDivisionError
    with ledger.lock("night", "you", 60, 0):
        pass


def test_the_lock_is_renewed_for_as_long_as_its_holder_lives(ledger: Ledger) -> None:
    with ledger.lock("night", "me", 0.6, 0) as lock:
        with pytest.raises(BusyError):  # waits for two leases
            ledger.lock("night", "you", 0.6, 1.5).__enter__()
        lock.check()


def test_a_killed_holder_frees_the_lock_by_time(shared: Settings) -> None:
    holder = spawn(
        shared,
        """
from storage.ledger import open_ledger
with open_ledger(settings.store.ledger_url).lock("night", "victim", 1.0, 0):
    ready()
""",
    )
    ledger = open_ledger(shared.store.ledger_url)
    try:
        assert line(holder) == "ready"
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=60)
        with ledger.lock("night", "heir", 60, 30):
            pass
    finally:
        end([holder])
        ledger.close()


def test_a_holder_whose_lock_was_taken_is_told_and_does_not_free_it(ledger: Ledger, ledger_url: str) -> None:
    engine = create_engine(ledger_url)
    with ledger.lock("night", "sleeper", 0.6, 0) as lock:
        with engine.begin() as connection:  # as if it had been halted past its lease and somebody else came
            until = datetime.now(UTC) + timedelta(minutes=1)
            connection.execute(update(locks).values(token="another", owner="other", lease_until=until))
        assert lock._lost.wait(timeout=30)
        with pytest.raises(LeaseLostError):
            lock.check()
    with pytest.raises(BusyError, match="other"):
        ledger.lock("night", "third", 60, 0).__enter__()
    engine.dispose()


def test_a_lock_that_a_dead_holder_took_before_the_clock_was_set_back_is_free(ledger: Ledger, ledger_url: str) -> None:
    engine = create_engine(ledger_url)
    with ledger.lock("night", "dead", 60, 0):
        with engine.begin() as connection:  # as it looks when the clock has gone back by five hours
            connection.execute(update(locks).values(lease_until=datetime.now(UTC) + timedelta(hours=5)))
        with ledger.lock("night", "next", 60, 0) as lock:
            lock.check()
    engine.dispose()


def test_of_processes_that_come_at_once_one_holds_the_lock_at_a_time(shared: Settings, tmp_path: Path) -> None:
    told = race(
        shared,
        f"""
import os
from storage.ledger import open_ledger
ledger = open_ledger(settings.store.ledger_url)
ready()
for _ in range(3):
    with ledger.lock("night", str(number), 60, 60):
        os.close(os.open({str(tmp_path / "inside")!r}, os.O_CREAT | os.O_EXCL))
        os.unlink({str(tmp_path / "inside")!r})
tell("never met")
""",
    )
    assert told == ["never met", "never met"]
