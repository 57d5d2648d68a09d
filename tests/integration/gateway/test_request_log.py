"""The gateway's log of requests: whole, without people and answers, and never lost by more than a flush."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
import pyarrow.parquet as pq
import pytest

from gateway.metrics import Metrics
from gateway.request_log import LogRow, RequestLog
from prebake.settings import Gateway, Store
from prebake.tables import GATEWAY_LOG
from prebake.user import hash_user
from storage.objects import open_objects
from storage.store import user_salt
from tests.gateway_bed import Running, answer_to, ask, gateway_server, logged, publish, settings_of, wait_until

ROW = LogRow(0.0, None, None, None, b"{}", False, "hit", None, 200, 1, 1, b"", True)
SECRET = "joe@example.com"


def post(gateway: Running, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers)


def salt_of(folder: Path) -> bytes:
    settings = settings_of(folder)
    return user_salt(settings, open_objects(settings.store))


def test_each_request_is_logged_without_its_people_and_without_answers(tmp_path: Path, upstream: Running) -> None:
    publish(tmp_path, [answer_to(settings_of(tmp_path), ask("Known?"), "The baked answer")])
    people = {"user": SECRET, "safety_identifier": SECRET, "prompt_cache_key": SECRET, "metadata": {"mail": SECRET}}
    with gateway_server(tmp_path, upstream.url, tenant_header="x-tenant") as gateway:
        post(gateway, ask("Known?", **people), **{"x-tenant": "a"})
        post(gateway, ask("Unknown?", user="ann"))
        post(gateway, ask("Unknown?", user="ann", stream=True))
        post(gateway, ask("Unknown?", n=2))
        post(gateway, ask("Unknown?", "busy"))
        post(gateway, {"model": "tiny", "messages": "none"})
        wait_until(lambda: len(logged(tmp_path)) == 5)
    hit, miss, streamed, bypass, refused = logged(tmp_path)
    salt = salt_of(tmp_path)
    assert (hit["cache"], hit["reason"], hit["tenant"], hit["status"]) == ("hit", None, "a", 200)
    assert (hit["prompt_tokens"], hit["completion_tokens"]) == (12, 5)
    assert hit["user_hash"] == hash_user(SECRET, salt)
    assert orjson.loads(hit["body"]) == ask("Known?")
    assert (miss["cache"], miss["reason"], miss["tenant"]) == ("miss", "not_baked", None)
    assert (miss["prompt_tokens"], miss["completion_tokens"]) == (11, 3)
    assert miss["user_hash"] == streamed["user_hash"] == hash_user("ann", salt)
    assert orjson.loads(streamed["body"]) == ask("Unknown?", stream=True)
    assert (bypass["cache"], bypass["reason"], bypass["user_hash"]) == ("bypass", "choices", None)
    assert refused["status"] == 429
    everything = b"".join(file.read_bytes() for file in (tmp_path / "prebake-store/gateway-log").rglob("*.parquet"))
    for secret in (SECRET, "ann", "The baked answer", "one two three"):
        assert secret not in str(logged(tmp_path)), secret
        assert secret.encode() not in everything
    segment = next((tmp_path / "prebake-store/gateway-log").rglob("day=*/*.parquet"))
    assert pq.read_schema(segment).equals(GATEWAY_LOG.schema)


def test_the_user_may_be_named_by_a_header(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url, user_header="X-User") as gateway:
        post(gateway, ask("Hi", user="in the body"), **{"x-user": "in the header"})
        wait_until(lambda: logged(tmp_path))
    salt = salt_of(tmp_path)
    assert logged(tmp_path)[0]["user_hash"] == hash_user("in the header", salt)


def test_sigterm_writes_what_is_queued(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url, log_flush_s=600) as gateway:
        for number in range(7):
            post(gateway, ask(f"Question {number}"))
        assert logged(tmp_path) == []
    assert len(logged(tmp_path)) == 7


def test_kill_9_loses_at_most_one_flush_interval(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url, log_flush_s=0.3) as gateway:
        for number in range(20):
            post(gateway, ask(f"Before {number}"))
        wait_until(lambda: len(logged(tmp_path)) == 20)
        for number in range(20):
            post(gateway, ask(f"At the end {number}"))
        gateway.process.send_signal(signal.SIGKILL)
        gateway.process.wait()
    rows = logged(tmp_path)  # every segment that is there can be read
    assert 20 <= len(rows) <= 40
    with gateway_server(tmp_path, upstream.url, log_flush_s=0.3) as gateway:
        post(gateway, ask("After"))
        wait_until(lambda: len(logged(tmp_path)) == len(rows) + 1)


def test_a_log_that_cannot_be_written_waits_then_drops_and_counts_and_harms_no_request(
    tmp_path: Path, upstream: Running
) -> None:
    log = tmp_path / "prebake-store" / "gateway-log"
    with gateway_server(tmp_path, upstream.url, log_queue=10) as gateway:
        log.write_text("a file where the folder should be")
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda n: post(gateway, ask(f"Question {n}")), range(30)))
        assert {answer.status_code for answer in answers} == {200}
        metrics = httpx.get(f"{gateway.url}/metrics").text
        assert "prebake_log_dropped_total 20.0" in metrics
        log.unlink()
        wait_until(lambda: len(logged(tmp_path)) == 10)
    assert gateway.log.read_text().count("request log: cannot be written") == 1


def test_a_sample_is_drawn_by_chance_and_says_how_large_it_is(tmp_path: Path, upstream: Running) -> None:
    publish(tmp_path, [answer_to(settings_of(tmp_path), ask("Known?"), "The baked answer")])
    with gateway_server(tmp_path, upstream.url, log_sample=0.5) as gateway:
        with httpx.Client(base_url=gateway.url) as client:
            for _ in range(200):
                client.post("/v1/chat/completions", json=ask("Known?"))
        dropped = httpx.get(f"{gateway.url}/metrics").text
    rows = logged(tmp_path)
    assert 50 < len(rows) < 150  # outside of it once in 10^12 times
    assert {row["sample_share"] for row in rows} == {0.5}
    assert "prebake_log_dropped_total 0.0" in dropped


def test_answers_are_logged_only_if_asked_for_and_never_those_of_requests_that_forbid_it(
    tmp_path: Path, upstream: Running
) -> None:
    publish(tmp_path, [answer_to(settings_of(tmp_path), ask("Known?"), "The baked answer")])
    with gateway_server(tmp_path, upstream.url, log_answers=True) as gateway:
        post(gateway, ask("Known?"))
        sent = post(gateway, ask("Unknown?")).text
        events = post(gateway, ask("Unknown?", stream=True)).text
        post(gateway, ask("Known?", user="secret"), **{"cache-control": "no-store"})
        post(gateway, ask("Unknown?", user="secret"), **{"cache-control": "no-store"})
    hit, miss, streamed = logged(tmp_path)
    assert orjson.loads(hit["answer"])["content"] == "The baked answer"
    assert (hit["prompt_tokens"], hit["completion_tokens"]) == (12, 5)
    assert (miss["answer"], miss["completion_tokens"]) == (sent, 3)
    assert streamed["answer"] == events


def test_segments_are_no_longer_than_the_settings_say(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url, log_flush_s=600, log_segment_rows=10) as gateway:
        for number in range(25):
            post(gateway, ask(f"Question {number}"))
        # Ten rows are written at once, without waiting for the flush.
        wait_until(lambda: len(logged(tmp_path)) >= 10)
    segments = [pq.read_table(file).num_rows for file in (tmp_path / "prebake-store/gateway-log").rglob("*.parquet")]
    assert sum(segments) == 25
    assert max(segments) == 10


def test_what_comes_while_a_segment_is_written_waits_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load each would otherwise be a file of the few rows that came during the one before."""
    objects = open_objects(Store(root=str(tmp_path)))
    metrics = Metrics()
    log = RequestLog(objects, b"salt", Gateway(log_segment_rows=100, log_flush_s=600), metrics)
    write = objects.write

    def requests_come(key: str, data: bytes) -> None:
        for _ in range(0 if list(tmp_path.rglob("*.parquet")) else 5):
            log.add(ROW)
        write(key, data)

    monkeypatch.setattr(objects, "write", requests_come)
    log.start()
    for _ in range(100):
        log.add(ROW)
    wait_until(lambda: metrics.registry.get_sample_value("prebake_log_rows_total") == 100)
    for _ in range(10):
        log.add(ROW)
    log.close()
    rows = [pq.read_metadata(file).num_rows for file in sorted((tmp_path / "gateway-log").rglob("*.parquet"))]
    assert sorted(rows) == [15, 100]


def test_rows_that_cannot_be_written_back_as_json_do_not_stop_the_others(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url) as gateway:
        httpx.post(
            f"{gateway.url}/v1/chat/completions",
            content=b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"user":"u","store":'
            + b"[" * 500 + b"]" * 500 + b"}",
        )  # fmt: skip
        post(gateway, ask("Sound", user="u"))
        wait_until(lambda: logged(tmp_path))
    assert [orjson.loads(row["body"]) for row in logged(tmp_path)] == [ask("Sound")]


def test_a_store_that_cannot_be_written_does_not_keep_the_gateway_from_serving(
    tmp_path: Path, upstream: Running
) -> None:
    (tmp_path / "prebake-store").write_text("a file where the store should be")
    with gateway_server(tmp_path, upstream.url) as gateway:
        response = post(gateway, ask("Hello?"))
        assert (response.status_code, response.headers["x-prebake"]) == (200, "miss")
