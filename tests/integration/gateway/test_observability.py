"""What operators see of the gateway: readiness, metrics, traces, and the access log."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_bed import Running, answer_to, ask, gateway_server, publish, settings_of, wait_until
from tests.otlp_receiver import otlp_receiver

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def post(gateway: Running, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=20)


def known(folder: Path, run_id: str = "run-1") -> str:
    return publish(folder, [answer_to(settings_of(folder), ask("Known?"), "The baked answer")], run_id)


def metric(gateway: Running, name: str) -> float:
    """The value of one series, 0 if it is not there."""
    found = re.findall(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{gateway.url}/metrics").text, re.MULTILINE)
    return float(found[0]) if found else 0.0


def access_lines(gateway: Running) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in gateway.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["path"].startswith("/v1")]


def test_metrics_tell_outcome_and_reason_by_route_latency_bytes_and_tokens_saved(
    tmp_path: Path, upstream: Running
) -> None:
    known(tmp_path)
    with gateway_server(tmp_path, upstream.url) as gateway:
        sent = [len(post(gateway, ask("Known?")).content) for _ in range(3)]
        passed = len(post(gateway, ask("Unknown?")).content)
        post(gateway, ask("Unknown?", n=2))
        requests = "prebake_requests_total"
        assert metric(gateway, f'{requests}{{cache="hit",reason="",route="faq"}}') == 3
        assert metric(gateway, f'{requests}{{cache="miss",reason="not_baked",route="faq"}}') == 1
        assert metric(gateway, f'{requests}{{cache="bypass",reason="choices",route=""}}') == 1
        assert metric(gateway, "prebake_hit_seconds_count") == 3
        assert metric(gateway, "prebake_upstream_seconds_count") == 2
        wait_until(lambda: metric(gateway, "prebake_upstream_answer_seconds_count") == 2)
        assert metric(gateway, 'prebake_sent_bytes_total{source="store"}') == sum(sent)
        assert metric(gateway, 'prebake_sent_bytes_total{source="upstream"}') > passed
        assert metric(gateway, 'prebake_saved_tokens_total{kind="completion"}') == 15


def test_the_snapshot_in_use_is_told_by_version_and_age(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url) as gateway:
        assert gateway.ready()["snapshot_age_s"] is None
        first = known(tmp_path)
        wait_until(lambda: gateway.ready()["snapshot"] == first)
        assert metric(gateway, f'prebake_snapshot_info{{version="{first}"}}') == 1
        second = known(tmp_path, "run-2")
        wait_until(lambda: gateway.ready()["snapshot"] == second)
        assert metric(gateway, f'prebake_snapshot_info{{version="{first}"}}') == 0
        assert metric(gateway, f'prebake_snapshot_info{{version="{second}"}}') == 1
        assert 0 <= gateway.ready()["snapshot_age_s"] < 600
        assert metric(gateway, "prebake_snapshot_created_seconds") > 1.7e9


def test_the_access_log_has_one_json_line_per_request_without_texts_keys_or_people(
    tmp_path: Path, upstream: Running
) -> None:
    known(tmp_path)
    with gateway_server(tmp_path, upstream.url, access_log=True) as gateway:
        post(gateway, ask("Known?", user="joe@example.com"), authorization="Bearer sk-secret")
        httpx.post(f"{gateway.url}/v1/chat/completions?token=sk-secret", json=ask("Unknown?", "busy"))
        httpx.get(f"{gateway.url}/v1/models")
        wait_until(lambda: len(access_lines(gateway)) == 3)
    hit, refused, models = access_lines(gateway)
    assert (hit["method"], hit["path"], hit["status"], hit["cache"]) == ("POST", "/v1/chat/completions", 200, "hit")
    assert (hit["run_id"], hit["bytes"] > 100, 0 < hit["seconds"] < 20) == ("run-1", True, True)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", hit["time"])
    assert (refused["status"], refused["cache"], refused["reason"]) == (429, "bypass", "query")
    assert (models["method"], models["path"], models["reason"]) == ("GET", "/v1/models", "not_chat")
    for secret in ("sk-secret", "joe@example.com", "Known?", "baked answer", "127.0.0.1"):
        assert secret not in str(access_lines(gateway)), secret


def test_the_access_log_is_off_unless_the_settings_want_it(tmp_path: Path, upstream: Running) -> None:
    with gateway_server(tmp_path, upstream.url) as gateway:
        post(gateway, ask("Hello?"))
    assert access_lines(gateway) == []


def test_a_request_is_a_trace_from_the_client_through_lookup_and_upstream(
    tmp_path: Path, upstream: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(tmp_path)
    with otlp_receiver() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with gateway_server(tmp_path, upstream.url) as gateway:
            post(gateway, ask("Known?"), traceparent=f"00-{TRACE}-{PARENT}-01")
            post(gateway, ask("Unknown?"), traceparent=f"00-{TRACE}-{PARENT}-01")
            sent_on = dict(httpx.get(f"{upstream.url}/seen").json()["requests"][-1]["headers"])["traceparent"]
            post(gateway, ask("Dead?", "broken"))
            httpx.get(f"{gateway.url}/healthz")
        # The gateway has ended: what it had to tell, it has told.
        hit, miss, broken = collector.named("POST")
        looked_hit, looked_miss, _ = collector.named("lookup")
        asked, asked_broken = collector.named("upstream")
    assert hit["trace"] == miss["trace"] == TRACE != broken["trace"]
    assert hit["parent"] == miss["parent"] == PARENT
    assert (looked_hit["parent"], looked_hit["prebake.cache"], looked_hit["prebake.run_id"]) == (
        hit["id"],
        "hit",
        "run-1",
    )
    assert (looked_miss["prebake.cache"], looked_miss["prebake.reason"]) == ("miss", "not_baked")
    assert looked_miss["prebake.route"] == "faq"
    assert (asked["parent"], asked["http.response.status_code"], asked["failed"]) == (miss["id"], 200, False)
    assert sent_on == f"00-{TRACE}-{asked['id']}-01"
    assert (asked_broken["http.response.status_code"], asked_broken["failed"]) == (503, True)
    assert collector.services == {"prebake-gateway"}
    assert collector.named("GET") == []
    assert "nknown?" not in str(collector.spans)


def test_a_collector_that_is_away_harms_no_request(
    tmp_path: Path, upstream: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with gateway_server(tmp_path, upstream.url) as gateway:
        assert post(gateway, ask("Hello?")).status_code == 200
        gateway.process.terminate()
        assert gateway.process.wait(30) == 0
