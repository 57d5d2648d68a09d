"""What ``make demo`` runs, on a log of 400 requests: the model is real, at night and online, and so is the replay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.make_log import make_log
from tests.gateway_bed import ROOT, upstream_server

NIGHT = ["ingest", "mine", "plan", "bake", "publish", "report"]


def demo(out: Path, *arguments: str) -> dict[str, Any]:
    """Run it as make does; returns the figures it left."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREBAKE_")}
    command = [sys.executable, "-m", "examples.demo", "--out", str(out), *arguments]
    run = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.slow
def test_the_demo_leaves_its_figures_and_run_again_bakes_nothing_twice(tmp_path: Path) -> None:
    make_log(tmp_path, days=3, requests=400)  # the demo takes a log that is there
    first = demo(tmp_path)
    assert list(first["wall_s"]) == ["log", *NIGHT, "online model", "replay"]
    assert (first["errors"], first["first_error"]) == (0, "")
    assert first["hits"] + first["misses"] + first["bypasses"] == first["requests"] > 0
    assert first["hit_rate"] == round(first["hits"] / first["requests"], 4)
    assert 0 < first["hit_rate"] <= first["ceiling_hit_rate"] < 1
    for figure in ("baked", "tokens_saved", "usd_saved"):
        assert first[figure] > 0
    with upstream_server(tmp_path) as online:  # the model's answers were looked at: any will do now
        again = demo(tmp_path, "--upstream", f"{online.url}/v1")
    assert list(again["wall_s"]) == ["log", *NIGHT, "replay"]
    assert again["baked"] == 0
    for figure in ("day", "requests", "hits", "ceiling_hit_rate", "tokens_saved", "usd_saved"):
        assert again[figure] == first[figure]
