"""The workers of a plan in the ledger, on SQLite and PostgreSQL: one budget for all, and who is alive."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prebake.settings import Settings
from prebake.settings import Store as StoreSettings
from storage.ledger import Ledger, open_ledger
from storage.workers import Budget, Done
from tests.integration.storage.race import race

HALF_A_MINUTE = Budget(gpu_s=30)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    opened = open_ledger(ledger_url)
    yield opened
    opened.close()


def join(ledger: Ledger, plan_id: str = "p", usd_per_hour: float = 3600.0, lease_s: float = 60.0) -> str:
    return ledger.workers.join(plan_id, "run", "host:1", usd_per_hour, lease_s)


def book(ledger: Ledger, worker_id: str, booked_s: float, budget: Budget = HALF_A_MINUTE) -> bool:
    return ledger.workers.book(worker_id, booked_s, budget, 60, Done())


def test_the_budget_holds_over_all_workers_of_a_plan_and_not_over_those_of_another(ledger: Ledger) -> None:
    first, second, other = join(ledger), join(ledger), join(ledger, "another plan")
    assert book(ledger, first, 20)
    assert not book(ledger, second, 11)
    assert book(ledger, second, 10)
    assert book(ledger, other, 30)


def test_a_booking_is_a_total_so_saying_it_again_costs_nothing(ledger: Ledger) -> None:
    worker = join(ledger)
    assert [book(ledger, worker, 30) for _ in range(3)] == [True, True, True]
    assert [found.booked_s for found in ledger.workers.of_plan("p")] == [30]


def test_dollars_are_counted_at_each_workers_own_price(ledger: Ledger) -> None:
    cheap, dear = join(ledger, usd_per_hour=3600), join(ledger, usd_per_hour=7200)
    assert book(ledger, cheap, 10, Budget(usd=30))
    assert not book(ledger, dear, 10.5, Budget(usd=30))
    assert book(ledger, dear, 10, Budget(usd=30))
    assert sum(worker.booked_usd for worker in ledger.workers.of_plan("p")) == pytest.approx(30)


def test_what_a_worker_did_not_spend_is_free_after_its_end_and_what_a_killed_one_booked_is_not(ledger: Ledger) -> None:
    polite, killed = join(ledger), join(ledger, lease_s=0.05)
    assert book(ledger, polite, 20)
    assert ledger.workers.book(killed, 10, HALF_A_MINUTE, 0.05, Done())
    time.sleep(0.1)
    third = join(ledger)
    assert not book(ledger, third, 1)
    ledger.workers.leave(polite, 5, Done(4.0, 3, 12, 2), "done")
    assert not book(ledger, third, 16)
    assert book(ledger, third, 15)
    found = {worker.worker_id: worker for worker in ledger.workers.of_plan("p")}
    assert (found[polite].end, found[polite].alive, found[polite].answers) == ("done", False, 3)
    assert (found[killed].end, found[killed].alive, found[killed].booked_s) == (None, False, 10)
    assert found[third].alive


def test_a_refused_worker_still_counts_as_alive(ledger: Ledger) -> None:
    worker = join(ledger, lease_s=0.05)
    time.sleep(0.1)
    assert not ledger.workers.of_plan("p")[0].alive
    assert not book(ledger, worker, 31)
    assert ledger.workers.of_plan("p")[0].alive


def test_workers_that_book_at_the_same_moment_never_exceed_the_budget(ledger_url: str, tmp_path: Path) -> None:
    settings = Settings(store=StoreSettings(root=str(tmp_path / "store"), ledger_url=ledger_url))
    ledger = open_ledger(ledger_url)
    code = """
from storage.ledger import open_ledger
from storage.workers import Budget, Done
ledger = open_ledger(settings.store.ledger_url)
ready()
worker = ledger.workers.join("p", "run", str(number), 1.0, 60)
booked = 0
while booked < 100 and ledger.workers.book(worker, booked + 1, Budget(gpu_s=101), 60, Done()):
    booked += 1
tell(booked)
"""
    booked = [int(str(told)) for told in race(settings, code, processes=3)]
    assert sum(booked) == 101
    assert sum(worker.booked_s for worker in ledger.workers.of_plan("p")) == 101
    ledger.close()
