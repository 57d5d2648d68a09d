"""Query logs of every format and layout become the same rows, once, and nobody's id is kept."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from prebake.errors import InputError, RejectLimitError, SettingsError
from prebake.progress import Silent
from prebake.request import Keyed, key_request
from prebake.routes import Route
from prebake.settings import Columns, Ingest, Settings
from prebake.stop import Stop
from prebake.tables import GATEWAY_LOG
from prebake.user import hash_user
from storage.store import Store, open_store
from tasks.ingest import IngestReport, ingest

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """One shared route."""
    return settings.model_copy(update={"routes": (Route(name="faq", scope="shared", max_temperature=0.5),)})


def row(text: str = "Where is my card?", **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]
    return {"timestamp": NOON.isoformat(), "model": "m", "temperature": 0, "messages": messages, **more}


def jsonl(rows: Iterable[Any]) -> bytes:
    return b"".join(orjson.dumps(each) + b"\n" for each in rows)


def read(
    store: Store, settings: Settings, *paths: Path | str, preset: str | None = None, **changes: Any
) -> IngestReport:
    changed = settings.model_copy(update={"ingest": settings.ingest.model_copy(update=changes)})
    return ingest(store, changed, [str(path) for path in paths], preset=preset, progress=Silent(), stop=Stop())


def log(store: Store) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = store.query_log.scan().to_table().to_pylist()
    return rows


def rejects(store: Store) -> list[tuple[int, str]]:
    return sorted((each["line"], each["reason"]) for each in store.rejects.scan().to_table().to_pylist())


def test_a_row_has_its_day_route_scope_and_the_gateways_fingerprint(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(jsonl([row(user="ann", tenant="acme", usage={"prompt_tokens": 9, "completion_tokens": 5})]))
    report = read(store, settings, file)
    assert (report.files, report.rows, report.rejected, report.days) == (1, 1, 0, (date(2026, 3, 10),))
    (found,) = log(store)
    body = {name: value for name, value in row().items() if name != "timestamp"}
    keyed = key_request(body, settings.route_table, "acme")
    assert isinstance(keyed, Keyed)
    assert found.pop("source")
    assert orjson.loads(found.pop("request")) == {
        "messages": body["messages"],
        "model": "m",
        "params": {"temperature": 0},
    }
    assert found == {
        "day": date(2026, 3, 10),
        "ts": NOON,
        "route": "faq",
        "tenant": "acme",
        "scope": "shared",
        "user_hash": hash_user("ann", store.salt),
        "fingerprint": keyed.fingerprint,
        "bypass": None,
        "turns": 1,
        "model": "m",
        "prompt": "Where is my card?",
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "cache": None,
    }


def test_requests_the_store_may_never_answer_are_kept_with_their_reason(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    file = tmp_path / "log.jsonl"
    file.write_bytes(jsonl([row(temperature=1), row(n=3), {**row(), "messages": [image]}]))
    assert read(store, settings, file).bypassed == {"sampling": 1, "choices": 1, "non_text": 1}
    assert {(each["bypass"], each["fingerprint"], each["request"]) for each in log(store)} == {
        ("sampling", None, None),
        ("choices", None, None),
        ("non_text", None, None),
    }


def as_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["timestamp", "model", "messages", "user"])
        writer.writerows(
            [each["timestamp"], each["model"], orjson.dumps(each["messages"]).decode(), each["user"]] for each in rows
        )


def as_parquet(file: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist([{**each, "timestamp": NOON} for each in rows]), file)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "log.jsonl": lambda file, rows: file.write_bytes(jsonl(rows)),
    "log.jsonl.gz": lambda file, rows: file.write_bytes(
        gzip.compress(jsonl(rows[:1])) + gzip.compress(jsonl(rows[1:]))
    ),
    "log.jsonl.zst": lambda file, rows: file.write_bytes(zstandard.compress(jsonl(rows))),
    "log": lambda file, rows: file.write_bytes(b"\xef\xbb\xbf" + jsonl(rows).rstrip()),
    "log.csv": as_csv,
    "log.parquet": as_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(store: Store, settings: Settings, tmp_path: Path, name: str) -> None:
    rows = [row(text, user="ann") for text in ("Hi", 'Two\nlines, "quoted"', "Grüße 🎉")]
    WRITERS[name](tmp_path / name, rows)
    report = read(store, settings, tmp_path / name, preset="columns")
    assert (report.rows, rejects(store)) == (3, [])
    assert sorted(each["prompt"] for each in log(store)) == sorted(["Hi", 'Two\nlines, "quoted"', "Grüße 🎉"])
    assert {(each["ts"], each["user_hash"]) for each in log(store)} == {(NOON, hash_user("ann", store.salt))}


def test_the_gateways_own_log_is_read_as_it_declares_it(store: Store, settings: Settings, tmp_path: Path) -> None:
    body = orjson.dumps({name: value for name, value in row().items() if name != "timestamp"}).decode()
    shared = {"ts": NOON, "tenant": None, "user_hash": 7, "body": body, "prompt_tokens": 1, "completion_tokens": 2}
    rows = [{**shared, "cache": "hit", "status": 200}, {**shared, "cache": "miss", "status": 503}]
    pq.write_table(pa.Table.from_pylist(rows, schema=GATEWAY_LOG.schema), tmp_path / "segment.parquet")
    report = read(store, settings, tmp_path / "*.parquet", preset="prebake")
    assert (report.rows, report.passed_over) == (1, {"not answered": 1})
    (found,) = log(store)
    assert (found["user_hash"], found["cache"], found["completion_tokens"]) == (7, "hit", 2)


def test_a_segment_of_before_there_were_namespaces_is_read_as_one_without(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    body = orjson.dumps({name: value for name, value in row().items() if name != "timestamp"}).decode()
    schema = GATEWAY_LOG.schema.remove(GATEWAY_LOG.schema.get_field_index("namespace"))
    rows = [{"ts": NOON, "body": body, "cache": "hit", "status": 200}]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "segment.parquet")
    read(store, settings, tmp_path / "segment.parquet", preset="prebake")
    (found,) = log(store)
    assert found["fingerprint"] is not None
    assert not found["scope"].startswith("namespace/")


def test_reading_the_same_content_again_changes_nothing_under_any_name(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_bytes(jsonl([row("One"), "bad", row("Two")]))
    read(store, settings, first, max_reject_share=1)
    second.write_bytes(first.read_bytes())
    before = store.query_log.version(), store.rejects.version()
    report = read(store, settings, first, second, max_reject_share=1)
    assert (report.files, report.files_skipped, report.rows) == (0, 2, 0)
    assert (store.query_log.version(), store.rejects.version()) == before


def test_raw_user_ids_are_in_no_file_of_the_store(store: Store, settings: Settings, tmp_path: Path) -> None:
    secret = "ann.miller.4711"
    rows = [
        row(user=secret),
        row(metadata={"employee": secret}),
        {"timestamp": NOON.isoformat(), "user": secret, "body": row(safety_identifier=secret)},
        row(prompt_cache_key=secret, temperature=1),
        {"user": secret, "messages": secret},
        row(user=[secret]),
        row(timestamp=secret),
    ]
    file = tmp_path / "log.jsonl"
    file.write_bytes(jsonl(rows) + b'{"user": "' + secret.encode() + b'"\n')
    assert read(store, settings, file, max_reject_share=1).rejected == 4
    kept = [each for each in Path(settings.store.root).rglob("*") if each.is_file()]
    assert any(each.suffix == ".parquet" for each in kept)
    for each in kept:
        assert secret.encode() not in each.read_bytes(), each
    for table in (store.query_log, store.rejects):
        assert secret not in str(table.scan().to_table().to_pylist())


def test_rejects_name_file_line_and_reason_and_cost_no_good_row(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    future = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    lines = [
        orjson.dumps(row("One")),
        b'{"model": "m", ',
        b"[1]",
        b"",
        orjson.dumps(row(timestamp=future)),
        orjson.dumps(row(timestamp=None)),
        orjson.dumps(row(model=5)),
        orjson.dumps(row(messages="hi")),
        b'{"timestamp": 1791806400, "model": "\xff"}',
        orjson.dumps(row("Two")),
    ]
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"\n".join(lines))
    report = read(store, settings, file, max_reject_share=0.9)
    assert (report.rows, report.rejected) == (2, 7)
    found = rejects(store)
    assert [line for line, _ in found] == [2, 3, 5, 6, 7, 8, 9]
    for (_, reason), words in zip(
        found, ["JSON", "object", "future", "no time", "no model", "no messages", "JSON"], strict=True
    ):
        assert words in reason
    assert {each["file"] for each in store.rejects.scan().to_table().to_pylist()} == {str(file)}


def test_too_many_rejects_fail_the_step_after_the_good_rows_are_kept(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([row("One"), "bad"]))
    (tmp_path / "b.jsonl").write_bytes(jsonl([row("Two")]))
    with pytest.raises(RejectLimitError, match=r"1 of 3 rows \(33.3%\).*max_reject_share = 5.0%.*2 good rows are kept"):
        read(store, settings, tmp_path / "*.jsonl")
    assert sorted(each["prompt"] for each in log(store)) == ["One", "Two"]


def test_a_file_read_in_the_wrong_layout_can_be_read_again_in_the_right_one(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(jsonl([row("One")]))
    with pytest.raises(RejectLimitError):
        read(store, settings, file, preset="litellm")
    assert read(store, settings, file, preset="openai").rows == 1


def test_times_that_name_no_zone_are_taken_in_the_zone_of_the_settings(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(jsonl([row(timestamp="2026-03-11 00:30:00")]))
    read(store, settings, file, time_zone="Europe/Berlin")
    assert log(store)[0]["ts"] == datetime(2026, 3, 10, 23, 30, tzinfo=UTC)
    assert log(store)[0]["day"] == date(2026, 3, 10)


def test_folders_and_globs_are_searched_and_each_file_is_read_once(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    (logs / "deep").mkdir(parents=True)
    for name in ("a.jsonl", "deep/b.jsonl", "_partial.jsonl", ".hidden"):
        (logs / name).write_bytes(jsonl([row(name)]))
    report = read(store, settings, logs, f"{logs}/*.jsonl", f"{logs}/**/*.jsonl")
    assert (report.files, report.rows) == (2, 2)
    assert {each["prompt"] for each in log(store)} == {"a.jsonl", "deep/b.jsonl"}


def test_a_path_that_names_nothing_is_an_input_error(store: Store, settings: Settings, tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path / "*.zst"):
        with pytest.raises(InputError, match="no such file"):
            read(store, settings, path)


def test_an_unknown_preset_is_a_settings_error_that_lists_the_known_ones(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="prebake, openai, litellm, langfuse, columns"):
        read(store, settings, tmp_path, preset="opnai")


def test_logs_in_s3_are_read_into_a_store_in_s3(s3_settings: Settings, tmp_path: Path) -> None:
    client = boto3.client("s3", endpoint_url=s3_settings.store.s3_endpoint_url)
    for name in ("a.jsonl", "b.jsonl.gz", "c.txt"):
        data = jsonl([row(name)])
        client.put_object(Bucket="prebake", Key=f"logs-in/{name}", Body=gzip.compress(data) if ".gz" in name else data)
    with open_store(s3_settings) as store:
        report = read(store, s3_settings, "s3://prebake/logs-in/*.jsonl*", max_reject_share=0)
        assert (report.files, report.rows) == (2, 2)
        assert read(store, s3_settings, "s3://prebake/logs-in/a.jsonl").files_skipped == 1
        assert {each["prompt"] for each in log(store)} == {"a.jsonl", "b.jsonl.gz"}
        with pytest.raises(InputError, match="no such file"):
            read(store, s3_settings, "s3://prebake/nothing/")


def test_workers_read_a_large_file_as_one_process_would(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "log.jsonl"
    count = 30_000
    with file.open("wb") as handle:
        for number in range(count):
            day = NOON + timedelta(hours=number % 80)
            handle.write(orjson.dumps(row(f"Question {number % 900}", timestamp=day.isoformat(), user=str(number))))
            handle.write(b"\n" if number % 1000 else b"\nbad\n")
    monkeypatch.setattr("tasks.ingest.SMALL_BYTES", 0)
    report = read(store, settings, file)
    assert (report.rows, report.rejected, len(report.days)) == (count, 30, 4)
    table = store.query_log.scan().to_table(["prompt", "user_hash", "fingerprint", "ts"])
    assert table.num_rows == count
    assert len(set(table["user_hash"].to_pylist())) == count
    assert len(set(zip(table["prompt"].to_pylist(), table["fingerprint"].to_pylist(), strict=True))) == 900
    assert rejects(store)[1][0] == 1003


def test_columns_map_any_other_layout(store: Store, settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(jsonl([{"when": NOON.timestamp(), "q": {"text": "Hi"}, "llm": "m", "who": {"id": 1}}]))
    mapped = settings.model_copy(
        update={
            "ingest": Ingest(
                preset="columns", columns=Columns(time="when", prompt="q.text", model="llm", user="who.id")
            )
        }
    )
    assert read(store, mapped, file).rows == 1
    assert (log(store)[0]["prompt"], log(store)[0]["ts"]) == ("Hi", NOON)
