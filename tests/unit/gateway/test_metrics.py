"""What hits count in plain numbers is, when it is shown, what prometheus-client would have counted one by one."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from gateway.metrics import HIT_BUCKETS_S, Metrics
from prebake.answer import Answer

ANSWER = Answer(
    b"f" * 16, "faq", b"{}", finish_reason="stop", prompt_tokens=12, completion_tokens=5, model="m", run_id="r",
    baked_at=datetime(2026, 1, 1, tzinfo=UTC), expires_at=datetime(2026, 1, 2, tzinfo=UTC),
)  # fmt: skip
SECONDS = st.one_of(st.sampled_from(HIT_BUCKETS_S), st.floats(0, 1))


@given(st.lists(st.lists(SECONDS, max_size=5), max_size=4))
def test_the_histogram_is_as_if_each_had_been_observed_however_often_it_is_shown(shown: list[list[float]]) -> None:
    metrics, registry = Metrics(), CollectorRegistry()
    plain = Histogram("prebake_hit_seconds", "", (), buckets=HIT_BUCKETS_S, registry=registry)
    for observed in shown:
        for seconds in observed:
            metrics.hits.count("faq", "hit", ANSWER, 100, seconds)
            plain.observe(seconds)
        text = metrics.text().decode()
        for line in generate_latest(registry).decode().splitlines():
            if line.startswith("prebake_hit_seconds_bucket") or line.startswith("prebake_hit_seconds_count"):
                assert line in text


def test_hits_are_shown_by_route_with_tokens_and_bytes_and_none_is_counted_twice() -> None:
    metrics = Metrics()
    for route, cache in (("faq", "hit"), ("faq", "hit"), ("shop", "hit"), ("shop", "near")):
        metrics.hits.count(route, cache, ANSWER, 100, 1e-4)
    metrics.text()
    metrics.text()
    value = metrics.registry.get_sample_value
    counted = {
        (route, cache): value("prebake_requests_total", {"route": route, "cache": cache, "reason": ""})
        for route, cache in (("faq", "hit"), ("shop", "hit"), ("shop", "near"))
    }
    assert counted == {("faq", "hit"): 2, ("shop", "hit"): 1, ("shop", "near"): 1}
    assert value("prebake_saved_tokens_total", {"kind": "prompt"}) == 48
    assert value("prebake_saved_tokens_total", {"kind": "completion"}) == 20
    assert value("prebake_sent_bytes_total", {"source": "store"}) == 400
