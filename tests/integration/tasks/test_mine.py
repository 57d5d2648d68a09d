"""Mining a real query log: Delta tables on local disk, DuckDB."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from prebake.errors import Interrupted
from prebake.settings import Mine, Settings
from prebake.stop import Stop
from prebake.tables import SKETCH_SIZE
from storage.store import Store
from tasks.count import BYTES_PER_ROW
from tasks.mine import mine
from tests.integration.tasks.conftest import DAY, Ask


def counts(store: Store) -> dict[tuple[object, bytes], dict[str, object]]:
    rows = store.daily_counts.scan().to_table().to_pylist()
    return {(row["day"], row["fingerprint"]): row for row in rows}


def test_a_day_is_summed_per_fingerprint_with_users_tenants_tokens_and_times(
    store: Store, settings: Settings, ask: Ask
) -> None:
    key = ask("How do I return it?", ["ann", "bob", "ann"], tenant="a", tokens=(10, 30))
    ask("how do i RETURN it", ["cid"], tenant="b", tokens=(14, None), at_s=60)
    other = ask("Where do you ship?", ["ann"])

    report = mine(store, settings)

    assert (report.days, report.requests, report.fingerprints) == ((DAY,), 5, 2)
    row = counts(store)[DAY, key]
    assert row["requests"] == 4
    assert len(row["user_sketch"]) == 3
    assert row["user_sketch"] == sorted(row["user_sketch"])
    assert len(row["tenant_sketch"]) == 2
    assert (row["prompt_tokens"], row["completion_tokens"], row["counted"]) == (30, 90, 3)
    midnight = datetime(2026, 3, 10, tzinfo=UTC)
    assert (row["first_seen"], row["last_seen"]) == (midnight, midnight + timedelta(seconds=60))
    assert row["route"] == "faq"
    assert counts(store)[DAY, other]["requests"] == 1


def test_requests_that_must_not_be_cached_are_not_counted(store: Store, settings: Settings, ask: Ask) -> None:
    ask("Pick a number", n=3)
    assert mine(store, settings).requests == 0
    assert not counts(store)


def test_the_sketch_keeps_the_smallest_hashes_when_there_are_more_users_than_it_holds(
    store: Store, settings: Settings, ask: Ask
) -> None:
    users = [f"user {number}" for number in range(200)]
    key = ask("Popular?", users + users[:50])
    mine(store, settings)
    hashes = sorted(set(store.query_log.scan().to_table()["user_hash"].to_pylist()))
    assert counts(store)[DAY, key]["user_sketch"] == hashes[:SKETCH_SIZE]


def test_what_was_mined_is_not_mined_again(store: Store, settings: Settings, ask: Ask) -> None:
    ask("How?")
    mine(store, settings)
    version = store.daily_counts.version()
    assert mine(store, settings).days == ()
    assert store.daily_counts.version() == version


def test_late_rows_of_an_old_day_make_that_day_be_mined_again_and_no_other(
    store: Store, settings: Settings, ask: Ask
) -> None:
    for back in range(4):
        ask("How?", day=DAY - timedelta(days=back))
    mine(store, settings)
    late = DAY - timedelta(days=2)
    key = ask("How?", ["cid"], day=late)
    assert mine(store, settings).days == (late,)
    assert counts(store)[late, key]["requests"] == 3
    assert counts(store)[DAY, key]["requests"] == 2


def test_named_days_are_mined_whatever_was_mined_before(store: Store, settings: Settings, ask: Ask) -> None:
    key = ask("How?")
    mine(store, settings)
    assert mine(store, settings, [DAY]).requests == 2
    assert counts(store)[DAY, key]["requests"] == 2


def test_a_day_whose_log_is_gone_has_no_counts_afterwards(store: Store, settings: Settings, ask: Ask) -> None:
    ask("How?")
    mine(store, settings)
    store.query_log.replace_days(store.query_log.scan().schema.empty_table(), [DAY])
    assert mine(store, settings).days == (DAY,)
    assert not counts(store)


def test_an_empty_log_is_no_error(store: Store, settings: Settings) -> None:
    assert mine(store, settings).days == ()
    assert mine(store, settings, [DAY]).requests == 0


def test_a_large_day_is_mined_in_slices_to_the_same_counts(store: Store, settings: Settings, ask: Ask) -> None:
    random = Random(5)
    for _ in range(20):
        ask(f"Question {random.randrange(12)}?", [f"user {random.randrange(5)}" for _ in range(30)])
    mine(store, settings)
    whole = counts(store)
    little = settings.model_copy(update={"mine": Mine(memory_gb=100 * BYTES_PER_ROW / 1e9)})
    mine(store, little, [DAY])
    assert counts(store) == whole


def test_a_stop_keeps_the_days_that_are_done(store: Store, settings: Settings, ask: Ask) -> None:
    ask("How?")
    stop = Stop()
    stop.request("SIGTERM")
    with pytest.raises(Interrupted):
        mine(store, settings, stop=stop)
    assert not counts(store)
    assert mine(store, settings).days == (DAY,)
