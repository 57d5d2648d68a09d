"""SQL over the store: the views of ``connect`` and the file that a plain DuckDB client opens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from prebake.settings import Settings
from prebake.settings import Store as StoreSettings
from prebake.tables import ANSWERS, ANSWERS_CURRENT, DAILY_COUNTS, PLAN, QUERY_LOG, REJECTS, RUNS
from storage.catalog import connect, write_catalog
from storage.store import Store, open_store

KEY = bytes(range(16))
DAY = date(2026, 3, 10)
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
VIEWS = (QUERY_LOG, REJECTS, DAILY_COUNTS, PLAN, ANSWERS, ANSWERS_CURRENT, RUNS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(Settings(store=StoreSettings(root=str(tmp_path / "it's a store")))) as store:
        yield store


def answer(baked_at: datetime, message: str) -> pa.Table:
    row = {
        "day": DAY,
        "plan_id": "plan",
        "run_id": "run",
        "shard_id": 0,
        "fingerprint": KEY,
        "route": "faq",
        "scope": "shared",
        "prompt": "Where?",
        "status": "answered",
        "finish_reason": "stop",
        "message": message,
        "error": None,
        "model": "m",
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "mean_logprob": -0.1,
        "engine_s": 0.5,
        "baked_at": baked_at,
        "expires_at": baked_at + timedelta(days=7),
    }
    return pa.Table.from_pylist([row], ANSWERS.schema)


def logged(prompt: str) -> pa.Table:
    row = dict.fromkeys(QUERY_LOG.schema.names) | {
        "day": DAY,
        "ts": NOON,
        "fingerprint": KEY,
        "turns": 1,
        "model": "m",
        "prompt": prompt,
        "source": "s",
    }
    return pa.Table.from_pylist([row], QUERY_LOG.schema)


def test_every_view_is_there_before_the_first_night_and_has_the_declared_columns(store: Store) -> None:
    with connect(store) as connection:
        for view in VIEWS:
            result = connection.execute(f"from {view.name}")
            assert [column[0] for column in result.description or ()] == view.schema.names
            assert result.fetchall() == []


def test_views_and_columns_say_what_they_mean_and_in_which_unit(store: Store) -> None:
    with connect(store) as connection:
        views = dict(connection.execute("select view_name, comment from duckdb_views() where not internal").fetchall())
        columns = connection.execute(
            "select column_name, comment from duckdb_columns() where table_name = 'plan'"
        ).fetchall()
    assert {view.name: views[view.name] for view in VIEWS} == {view.name: view.meaning for view in VIEWS}
    assert dict(columns)["cost_usd"] == "What the night spends on the answer (dollars)"
    assert all(comment for _, comment in columns)


def test_a_fingerprint_is_hexadecimal_text_as_everywhere_else_people_see_it(store: Store) -> None:
    store.query_log.append(logged("Where?"))
    with connect(store) as connection:
        assert connection.execute("select prompt from query_log where fingerprint = ?", [KEY.hex()]).fetchall() == [
            ("Where?",)
        ]


def test_the_current_answer_is_the_newest_of_its_fingerprint(store: Store) -> None:
    store.answers.append(answer(NOON + timedelta(hours=1), '"new"'))
    store.answers.append(answer(NOON, '"old"'))
    with connect(store) as connection:
        assert connection.execute("select count(*) from answers").fetchone() == (2,)
        assert connection.execute("select message from answers_current").fetchall() == [('"new"',)]


def test_runs_of_the_ledger_are_rows(store: Store) -> None:
    run_id = store.ledger.start_run("nightly", DAY, {"routes": ["faq"]})
    with connect(store) as connection:
        rows = connection.execute("select run_id, kind, day, params ->> 'routes', finished_at from runs").fetchall()
    assert rows == [(run_id, "nightly", DAY, '["faq"]', None)]


def test_times_are_shown_in_utc(store: Store) -> None:
    store.query_log.append(logged("Where?"))
    with connect(store) as connection:
        assert connection.execute("select ts::text from query_log").fetchone() == ("2026-03-10 12:00:00+00",)


def test_a_plain_client_opens_the_published_file_with_no_set_up(store: Store) -> None:
    store.query_log.append(logged("Where's that?"))
    store.answers.append(answer(NOON, '"there"'))
    key = write_catalog(store)
    query = "select a.message, q.prompt, q.day::text from answers_current a join query_log q using (fingerprint)"
    script = (
        "import duckdb, sys\n"
        "config = {'autoinstall_known_extensions': 'false', 'autoload_known_extensions': 'false'}\n"
        "print(duckdb.connect(sys.argv[1], read_only=True, config=config).execute(sys.argv[2]).fetchall())"
    )
    file = str(store.objects.local_path(key))
    client = subprocess.run([sys.executable, "-c", script, file, query], capture_output=True, text=True, check=True)
    assert client.stdout.strip() == str([('"there"', "Where's that?", "2026-03-10")])


def test_the_published_file_has_the_comments_too(store: Store) -> None:
    key = write_catalog(store)
    with duckdb.connect(str(store.objects.local_path(key)), read_only=True) as connection:
        assert connection.execute("select comment from duckdb_tables() where table_name = 'plan'").fetchone() == (
            PLAN.meaning,
        )
        assert connection.execute("select count(*) from query_log").fetchone() == (0,)


def test_a_reader_keeps_the_file_it_has_open_while_the_next_is_published(store: Store) -> None:
    store.answers.append(answer(NOON, '"old"'))
    file = str(store.objects.local_path(write_catalog(store)))
    with duckdb.connect(file, read_only=True) as reader:
        store.answers.append(answer(NOON + timedelta(hours=1), '"new"'))
        write_catalog(store)
        assert reader.execute("select message from answers_current").fetchall() == [('"old"',)]
    with duckdb.connect(file, read_only=True) as reader:
        assert reader.execute("select message from answers_current").fetchall() == [('"new"',)]
