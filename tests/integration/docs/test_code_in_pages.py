"""What the README and the gateway's page tell people to write and type is run, against real stores and servers."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import orjson
import pytest
import zstandard
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from prebake.loading import load
from prebake.settings import Store
from storage.objects import open_objects
from storage.snapshot import publish_snapshot
from tests.answers import make_answer
from tests.gateway_bed import ROOT, Running, answer_to, ask, free_port, publish, running, settings_of, upstream_server
from tests.openai_upstream import completion

README, GATEWAY = ROOT / "README.md", ROOT / "docs" / "gateway.md"
SIGNATURES = ROOT / "docs" / "architecture.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/README.md"))]
SETTINGS = """
[[routes]]
name = "faq"
"""
BAKED = "How do I reset my password?"
STORED = "Open the settings."


def blocks(page: Path, language: str) -> list[str]:
    """The page's fenced blocks of that language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def the_one(page: Path, language: str, about: str) -> str:
    """The block that says this."""
    (found,) = [block for block in blocks(page, language) if about in block]
    return found


def in_shell(line: str) -> list[str]:
    """As a person types it, in the environment that these tests run in."""
    return ["bash", "-euo", "pipefail", "-c", line]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, beside an environment, as a checkout has it; ``prebake`` is on the path too."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    monkeypatch.setenv("PATH", f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with upstream_server(tmp_path_factory.mktemp("upstream")) as server:
        yield server


def test_every_python_block_is_in_a_page_that_is_run_here_or_is_a_list_of_signatures() -> None:
    found = {page: len(blocks(page, "python")) for page in PAGES}
    assert {page: count for page, count in found.items() if count and page != SIGNATURES} == {README: 1, GATEWAY: 3}


@pytest.mark.slow
def test_the_readmes_block_runs_line_by_line_and_its_client_is_given_what_is_stored(
    folder: Path, tiny_model: Path, upstream: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The night may bake nothing: what it would take a GPU for is published by hand before the gateway starts."""
    yesterday = datetime.now(UTC) - timedelta(days=1)
    row = {"timestamp": yesterday.isoformat(), "user": "ann", **ask("Hello?")}
    (folder / "logs").mkdir()
    (folder / "logs" / "day.jsonl.zst").write_bytes(zstandard.compress(orjson.dumps(row) + b"\n"))
    port = free_port()
    monkeypatch.setenv("PREBAKE_ENGINE__MODEL", str(tiny_model))
    monkeypatch.setenv("PREBAKE_ROUTES", '[{"name": "default", "scope": "shared"}]')
    monkeypatch.setenv("PREBAKE_PLAN__BUDGET_ANSWERS", "0")
    monkeypatch.setenv("PREBAKE_GATEWAY__PORT", str(port))
    monkeypatch.setenv("PREBAKE_GATEWAY__UPSTREAM", f"{upstream.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    before, serve, after = re.split(r"^(.*prebake serve.*)$", the_one(README, "bash", "prebake serve"), flags=re.M)
    for line in before.strip().splitlines():
        run = subprocess.run(in_shell(line), capture_output=True, text=True, timeout=120, check=False)
        assert run.returncode == 0, (line, run.stdout, run.stderr)
    publish(folder, [answer_to(load(folder / "prebake.toml"), ask(BAKED), STORED)])
    command = ["env", "-C", str(folder), *shlex.split(serve, comments=True)]
    with running(command, f"http://127.0.0.1:{port}", "/healthz", folder / "gateway.log", {}):
        names: dict[str, Any] = {"OpenAI": openai.OpenAI}
        exec(the_one(README, "python", "OpenAI").replace("8300", str(port)), names)
        create = names["client"].chat.completions.with_raw_response.create
        hit, miss = create(**ask(BAKED)), create(**ask("Something else?"))
        assert (hit.headers["x-prebake"], miss.headers["x-prebake"]) == ("hit", "miss")
        assert hit.parse().choices[0].message.content == STORED
        for line in after.strip().splitlines():
            subprocess.run(in_shell(line), timeout=120, check=True)


def test_the_middlewares_lines_put_the_store_before_an_application_and_take_its_tenant(folder: Path) -> None:
    settings = settings_of(folder, SETTINGS)
    publish(folder, [answer_to(settings, ask(BAKED), STORED, tenant="acme")])

    async def model(_request: Request) -> Response:
        return JSONResponse(completion("tiny", "the application"))

    app = Starlette(routes=[Route("/v1/chat/completions", model, methods=["POST"])])
    exec(the_one(GATEWAY, "python", "add_middleware"), {"app": app})

    class Authentication:
        """Says who asks, as the application's own must have done before."""

        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            tenant = dict(scope.get("headers", [])).get(b"x-user", b"").decode()
            await self.app({**scope, "user": SimpleNamespace(tenant=tenant)}, receive, send)

    app.add_middleware(Authentication)
    with TestClient(app) as client:
        said = [
            client.post("/v1/chat/completions", json=ask(BAKED), headers={"x-user": name}) for name in ("acme", "other")
        ]
    assert [answer.headers["x-prebake"] for answer in said] == ["hit", "miss"]
    assert [answer.json()["choices"][0]["message"]["content"] for answer in said] == [STORED, "the application"]


def test_the_lookups_lines_give_the_message_of_a_store_in_a_folder(folder: Path) -> None:
    settings = settings_of(folder, SETTINGS)
    publish(folder, [answer_to(settings, ask(BAKED), STORED, tenant="acme")])
    said = []
    for question in (BAKED, "Something else?"):
        names: dict[str, Any] = {"body": ask(question)}
        exec(the_one(GATEWAY, "python", 'tenant="acme"'), names)
        said.append(names["message"])
    assert said[0]["content"] == STORED
    assert said[1] is None


def test_the_lines_for_a_store_in_s3_find_one_answer_and_many(
    folder: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket="bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    answer = answer_to(settings_of(folder, SETTINGS), ask(BAKED), STORED, tenant="acme")
    objects = open_objects(Store(root="s3://bucket/prebake", s3_endpoint_url=s3_server))
    publish_snapshot(objects, [answer], run_id="run", keep=3, now=datetime.now(UTC))
    names: dict[str, Any] = {"body": ask(BAKED), "tenant": "acme", "fingerprints": [bytes(16), answer.fingerprint]}
    names["bodies"] = [ask("Something else?"), ask(BAKED)]
    exec(the_one(GATEWAY, "python", "s3://bucket/prebake"), names)
    assert names["found"].answer.message["content"] == STORED
    assert [found.cache for found in names["each"]] == ["miss", "hit"]
    assert [found and found.message["content"] for found in names["answers"]] == [None, STORED]


def test_the_commands_for_one_answer_explain_block_unblock_and_approve_it(folder: Path) -> None:
    block = the_one(GATEWAY, "bash", "prebake explain")
    (key,) = set(re.findall(r"[0-9a-f]{32}", block))
    settings_of(folder, SETTINGS)
    publish(folder, [make_answer(bytes.fromhex(key), expires_at=datetime.now(UTC) + timedelta(days=1))])
    (folder / "request.json").write_bytes(orjson.dumps(ask(BAKED)))
    run = subprocess.run(in_shell(block), capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.lstrip().startswith("miss: not_baked")
    for done in (f"\nblocked: {key}", f"\nunblocked: {key}", "\napproved"):
        assert done in run.stdout


def test_the_command_for_an_admin_prints_a_key_that_the_settings_take(folder: Path) -> None:
    line = the_one(GATEWAY, "bash", "--admin").splitlines()[0]
    said = subprocess.run(in_shell(line), capture_output=True, text=True, timeout=60, check=True).stdout
    (toml,) = re.findall(r"^\[\[keys\]\]\n(?:\w.*\n)+", said, re.MULTILINE)
    (key,) = settings_of(folder, toml).keys
    assert (key.name, key.admin) == ("boss", True)
