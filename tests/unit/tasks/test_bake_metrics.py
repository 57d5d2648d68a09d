"""The bake's metrics, without a bake: names, samples, and a port that cannot be had."""

from __future__ import annotations

import logging
import re
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families

from prebake.pulse import Pulse
from prebake.settings import Engine
from tasks.bake_metrics import METRICS, BakeCollector, serve_metrics


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_prometheus_conventions(metric: object) -> None:
    family = metric.family(Pulse())  # type: ignore[attr-defined]
    assert re.fullmatch(r"prebake_bake_[a-z]+(_[a-z]+)*", family.name)
    assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_milliseconds", "_s"))
    assert family.documentation
    assert {sample.name for sample in family.samples} <= {family.name, f"{family.name}_total"}


def test_what_is_not_known_has_no_sample_and_all_else_has() -> None:
    unknown = {family.name for family in BakeCollector(Pulse).collect() if not family.samples}
    assert unknown == {f"prebake_bake_{name}" for name in ("tokens_per_second", "left_seconds", "budget_dollars")}
    known = BakeCollector(lambda: Pulse(tokens_per_s=1, seconds_left=2, budget_usd=3)).collect()
    assert all(family.samples for family in known)


def test_a_port_that_is_taken_is_told_and_the_bake_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, caplog.at_level(logging.WARNING):
        port = taken.getsockname()[1]
        with serve_metrics(Engine(metrics_port=port), Pulse):
            pass
    assert f"engine.metrics_port: cannot listen on 127.0.0.1:{port}" in caplog.text
    assert "goes on without metrics" in caplog.text


def test_text_with_quotes_in_a_label_is_read_back_as_it_was() -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(BakeCollector(lambda: Pulse(plan_id='a "plan"\n', owner="h:1")))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    (info,) = [family for family in families if family.name == "prebake_bake_info"]
    assert info.samples[0].labels == {"plan_id": 'a "plan"\n', "run_id": "", "owner": "h:1"}
