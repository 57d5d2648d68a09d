"""Dashboard and alert rules are sound, and know no metric that the gateway does not have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.metrics import Metrics

INFRA = Path(__file__).parents[3] / "infra"
RULES = INFRA / "prometheus" / "alerts.yml"
DASHBOARD = INFRA / "grafana" / "prebake.json"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
KNOWN = {family.name + suffix for family in Metrics().registry.collect() for suffix in SUFFIXES[family.type]}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (prometheus) is not installed")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[str]:
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"])


def named_in(expression: str) -> set[str]:
    return set(re.findall(r"\bprebake_\w+", expression))


def promtool(*arguments: str) -> None:
    done = subprocess.run(("promtool", *arguments), capture_output=True, text=True, cwd=RULES.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_of_the_rules_is_one_the_gateway_has() -> None:
    named = {name for rule in rules() for name in named_in(rule["expr"])}
    assert len(named) > 5
    assert named <= KNOWN


def test_every_metric_of_the_dashboard_is_one_the_gateway_has() -> None:
    named = {name for expression in expressions() for name in named_in(expression)}
    assert named <= KNOWN


def test_the_dashboard_asks_only_the_data_source_that_is_chosen_and_no_two_panels_lie_on_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["title"]
        assert panel["description"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert set(rule["annotations"]) == {"summary", "what_to_do"}


def test_every_alert_has_a_test() -> None:
    tested = {
        case["alertname"]
        for test in yaml.safe_load((RULES.parent / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert {rule["alert"] for rule in rules() if "alert" in rule} == tested


@needs_promtool
def test_promtool_finds_the_rules_sound_and_their_tests_pass() -> None:
    promtool("check", "rules", RULES.name)
    promtool("test", "rules", "alerts_test.yml")


@needs_promtool
def test_promtool_can_read_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    records = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m").replace("$job", "prebake")}
        for number, expression in enumerate(expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    promtool("check", "rules", str(file))
