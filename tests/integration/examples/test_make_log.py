"""The example's log as files."""

import subprocess
import sys
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path

import orjson
import pytest
import zstandard

from examples.corpus import HERE
from examples.make_log import END_DAY, make_log
from prebake import loading
from prebake.progress import Silent
from prebake.request import Keyed, key_request, user_turns
from prebake.stop import Stop
from storage.store import open_store
from tasks.ingest import ingest


def rows(file):
    with zstandard.open(file, "rt", encoding="utf-8") as lines:
        return [orjson.loads(line) for line in lines]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return make_log(tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="module")
def asked(log):
    return [row for file in (*log.log, log.held_back) for row in rows(file)]


def test_it_has_thirty_days_and_fifty_thousand_requests(log, asked):
    assert log.requests == len(asked) == 50_000
    assert [file.name for file in log.log] == [
        f"{END_DAY - timedelta(days=back)}.jsonl.zst" for back in reversed(range(1, 30))
    ]
    assert log.tenants == 5
    assert 3000 < log.users < 6000


def test_each_file_holds_its_own_day_in_order_and_the_last_day_is_held_back(log):
    for file in log.log:
        times = [datetime.fromisoformat(row["timestamp"]) for row in rows(file)]
        assert {time.date() for time in times} == {date.fromisoformat(file.name[:10])}
        assert times == sorted(times)
    assert {row["timestamp"][:10] for row in rows(log.held_back)} == {str(END_DAY)}
    assert log.held_back_requests == len(rows(log.held_back))
    assert log.held_back.parent not in {file.parent for file in log.log}


def test_ingest_reads_every_row_with_the_examples_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("PREBAKE_STORE__ROOT", str(tmp_path / "store"))
    summary = make_log(tmp_path / "log", days=3, requests=600)
    files = [str(file) for file in (*summary.log, summary.held_back)]
    effective = loading.load(HERE / "prebake.toml")
    with open_store(effective) as store:
        report = ingest(store, effective, files, progress=Silent(), stop=Stop())
        log = store.query_log.scan().to_table().to_pylist()
    assert (report.rows, report.rejected, report.passed_over) == (600, 0, {})
    assert report.days == tuple(END_DAY - timedelta(days=back) for back in (2, 1, 0))
    asked = [row for file in files for row in rows(file)]
    assert {row["ts"] for row in log} == {datetime.fromisoformat(row["timestamp"]) for row in asked}
    assert len({row["user_hash"] for row in log}) == len({row["body"]["user"] for row in asked})
    assert sum(row["prompt_tokens"] for row in log) == sum(row["usage"]["prompt_tokens"] for row in asked)
    assert Counter(row["tenant"] for row in log) == Counter(row["tenant"] for row in asked)


def test_the_ceiling_is_the_share_of_the_last_day_that_the_window_has_seen(log, asked):
    effective = loading.load(HERE / "prebake.toml")
    first = END_DAY - timedelta(days=effective.mine.window_days)
    seen, last = set(), []
    for row in asked:
        key = key_request(row["body"], effective.route_table, row["tenant"])
        fingerprint = key.fingerprint if isinstance(key, Keyed) else None
        day = date.fromisoformat(row["timestamp"][:10])
        if day == END_DAY:
            last.append(fingerprint)
        elif day >= first:
            seen.add(fingerprint)
    hits = sum(fingerprint is not None and fingerprint in seen for fingerprint in last)
    assert log.ceiling_hit_rate == pytest.approx(hits / len(last))
    assert 0.4 < log.ceiling_hit_rate < 0.65


def test_it_carries_what_real_logs_carry(asked):
    routes = loading.load(HERE / "prebake.toml").route_table
    outcomes = Counter(
        key.route.name if isinstance(key, Keyed) else key
        for key in (key_request(row["body"], routes, row["tenant"]) for row in asked)
    )
    assert {"banking", "assistant", "sampling", "choices", "logprobs", "no_route"} <= set(outcomes)
    conversations = sum(user_turns(row["body"]) > 1 for row in asked) / len(asked)
    assert 0.06 < conversations < 0.10
    prompts = " ".join(row["body"]["messages"][-1]["content"] for row in asked)
    for planted in ("example.com", "7946", "4242", "GB82", "right now", "near me"):
        assert planted in prompts


def test_a_banks_day_is_busier_than_its_night_and_its_weekend(asked):
    times = [datetime.fromisoformat(row["timestamp"]) for row in asked if row["tenant"].endswith("-bank")]
    hours = Counter(time.hour for time in times)
    assert min(hours[hour] for hour in range(9, 17)) > 5 * max(hours[hour] for hour in range(1, 5))
    days = Counter(time.date() for time in times)
    week = [days[END_DAY - timedelta(days=back)] for back in range(28)]
    weekend = [days[END_DAY - timedelta(days=back)] for back in range(28) if (END_DAY.weekday() - back) % 7 >= 5]
    assert sum(weekend) / len(weekend) < 0.8 * sum(week) / len(week)


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(tmp_path):
    def written(name, seed):
        summary = make_log(tmp_path / name, days=3, requests=300, seed=seed)
        return [file.read_bytes() for file in (*summary.log, summary.held_back)]

    assert written("a", 1) == written("b", 1)
    assert written("a", 1) != written("c", 2)


@pytest.mark.parametrize(("days", "requests"), [(1, 100), (10, 9)])
def test_a_log_too_small_to_hold_a_day_back_is_refused(tmp_path, days, requests):
    with pytest.raises(ValueError, match="a log needs 2 days"):
        make_log(tmp_path, days=days, requests=requests)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_log_and_says_what_it_wrote(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "examples.make_log", str(tmp_path), "--days", "2", "--requests", "50"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=HERE.parent,
    )
    said = orjson.loads(run.stdout)
    assert said["requests"] == 50
    assert [Path(file).name for file in said["log"]] == [f"{END_DAY - timedelta(days=1)}.jsonl.zst"]
    assert len(rows(said["held_back"])) == said["held_back_requests"]
