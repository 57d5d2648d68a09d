"""The base install, by its own lock and nothing else: it reads logs, plans, answers SQL and serves, without vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway_bed import ROOT, SETTINGS, ask, free_port, running, settings_of
from tests.page_bed import ADMIN_KEY, page_of, store_answers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the base install."""
    folder = tmp_path_factory.mktemp("base") / "venv"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    environment = {**os.environ, "VIRTUAL_ENV": str(folder)}
    lock = ROOT / "requirements" / "base.txt"
    subprocess.run([uv, "pip", "install", "--quiet", "--require-hashes", "-r", lock], env=environment, check=True)
    return folder / "bin" / "python"


def prebake(python: Path, folder: Path, *arguments: str) -> str:
    """What the command prints."""
    command = [python, "-m", "prebake", "--settings", folder / "prebake.toml", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_it_has_no_engine_and_all_that_a_log_needs_to_become_a_plan(python: Path, tmp_path: Path) -> None:
    assert subprocess.run([python, "-c", "import vllm"], capture_output=True, check=False).returncode == 1
    settings_of(tmp_path, SETTINGS)
    asked = [
        ask("Where is my card?") | {"user": f"user-{n}", "metadata": {"tenant": "acme"}, "created": 1_769_900_000 + n}
        for n in range(5)
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, asked)))
    report = json.loads(
        prebake(python, tmp_path, "ingest", "--json", str(tmp_path / "log.jsonl"), "--preset", "openai")
    )
    assert report["rows"] == 5
    prebake(python, tmp_path, "mine")
    prebake(python, tmp_path, "plan", "--day", "2026-01-31")
    said = json.loads(prebake(python, tmp_path, "sql", "--json", "select max(ts) as last from query_log"))
    assert "2026-01-31" in str(said["rows"][0])


def test_its_gateway_serves_hits_and_the_page_of_what_it_served(python: Path, tmp_path: Path) -> None:
    store_answers(tmp_path, {("Where is my card?", "tiny"): "In the post."})
    port = free_port()
    command = [str(python), "-m", "prebake", "-s", str(tmp_path / "prebake.toml"), "serve", "--port", str(port)]
    environment = {"PREBAKE_GATEWAY__LOG_FLUSH_S": "0.3"}
    with running(command, f"http://127.0.0.1:{port}", "/healthz", tmp_path / "gateway.log", environment) as gateway:
        client = gateway.client.with_options(api_key=ADMIN_KEY)
        hit = client.chat.completions.with_raw_response.create(**ask("Where is my card?"))
        assert hit.headers["x-prebake"] == "hit"
        assert "Where is my card?" in page_of(gateway).get("/admin").text
