"""The servers that the gateway could run on are all asked the same and give the same."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

from benchmarks._front import CHATS, HEADERS
from tests.gateway_bed import free_port, running

READY = '{"choices":[{"message":{"content":"Zürich"}}]}'


@pytest.mark.parametrize("app", [["benchmarks._ready:asgi"], ["--factory", "benchmarks._ready:starlette"]])
def test_each_gives_the_ready_answer_to_a_request(tmp_path: Path, app: list[str]) -> None:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", *app, "--port", str(port)]
    with running(command, f"http://127.0.0.1:{port}", "/", tmp_path / "log", {"READY_BODY": READY}) as server:
        for request in CHATS:
            answer = httpx.post(server.url + request.path, content=request.body, headers=HEADERS)
            assert (answer.status_code, answer.headers["x-prebake"], answer.text) == (200, "hit", READY)
            assert answer.headers["content-type"] == "application/json"
