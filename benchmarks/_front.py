"""The servers of the gateway benchmark, each a process with two workers on the same two cores, ready to be asked.

In: a folder to work in. Out: running servers, and for each the requests that it is measured by. All of them answer the
same questions, with authentication where they have any: nginx has the gateway's own answers as files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from getpass import getuser
from hashlib import sha256
from pathlib import Path
from typing import Final

import httpx
import orjson

from benchmarks._rivals import debian, litellm
from benchmarks._wrk import Request
from benchmarks.lookup import answer, body, fingerprint
from prebake.settings import Store
from storage.objects import open_objects
from storage.snapshot import publish_snapshot
from tests.gateway_bed import Running, free_port, running

CHAT: Final = "/v1/chat/completions"
KEY: Final = "sk-benchmark-0123456789abcdef"
HEADERS: Final = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
WORKERS: Final = 2
QUESTIONS: Final = 10
_START_S: Final = 300.0

_SETTINGS: Final = f"""
[gateway]
workers = {WORKERS}

[[keys]]
name = "benchmark"
sha256 = "{sha256(KEY.encode()).hexdigest()}"

[[routes]]
name = "faq"
scope = "shared"
fold = "text"
"""

_NGINX: Final = """
daemon off;
user {user};
pid nginx.pid;
error_log stderr;
worker_processes {workers};
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  open_file_cache max=100;
  keepalive_requests 1000000000;
  default_type application/json;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {{ listen 127.0.0.1:{port} reuseport backlog=2048; root {root}; }}
}}
"""

_LITELLM: Final = """
model_list:
  - model_name: shop-assistant
    litellm_params: {{model: openai/shop-assistant, api_base: "{upstream}/v1", api_key: none}}
litellm_settings: {{cache: true, cache_params: {{type: local, ttl: 86400}}, telemetry: false}}
general_settings: {{master_key: {key}}}
"""


@dataclass(frozen=True)
class Front:
    """A server and what it is asked."""

    server: Running
    requests: tuple[Request, ...]


CHATS: Final = tuple(Request(CHAT, orjson.dumps(body(number))) for number in range(QUESTIONS))
# The same questions, each time by another user: more bodies than the gateway remembers, none of them seen before.
STRANGERS: Final = tuple(
    Request(CHAT, orjson.dumps({**body(number % QUESTIONS), "user": f"user-{number}"})) for number in range(5000)
)


def ask(url: str, number: int) -> httpx.Response:
    """Ask a question of that number; raises AssertionError if the answer is not 200."""
    response = httpx.post(url + CHAT, json=body(number), headers=HEADERS, timeout=60)
    assert response.status_code == 200, response.text  # noqa: S101
    return response


@contextmanager
def upstream(folder: Path) -> Iterator[Running]:
    """The model server behind them."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "benchmarks._upstream:app", "--port", str(port)]
    command += ["--no-access-log", "--log-level", "error", "--loop", "uvloop", "--http", "httptools"]
    with running(command, f"http://127.0.0.1:{port}", "/seen", folder / "upstream.log", {}, start_s=_START_S) as server:
        yield server


@contextmanager
def gateway(folder: Path, upstream: str) -> Iterator[Front]:
    """Ours, with all questions answered, with keys, request log and metrics."""
    settings = folder / "prebake.toml"
    settings.write_text(_SETTINGS)
    now = datetime.now(UTC)
    answers = [answer(number, fingerprint(body(number)), now) for number in range(QUESTIONS)]
    objects = open_objects(Store(root=str(folder / "prebake-store")))
    publish_snapshot(objects, answers, run_id="benchmark", keep=1, now=now)
    port = free_port()
    command = [sys.executable, "-m", "prebake", "--settings", str(settings), "serve", "--port", str(port)]
    environment = {"PREBAKE_GATEWAY__UPSTREAM": f"{upstream}/v1"}
    with running(
        command, f"http://127.0.0.1:{port}", "/healthz", folder / "gateway.log", environment, start_s=_START_S
    ) as server:
        for number in range(QUESTIONS):
            assert ask(server.url, number).headers["x-prebake"] == "hit"  # noqa: S101
        yield Front(server, CHATS)


@contextmanager
def nginx(folder: Path, ours: Front) -> Iterator[Front]:
    """nginx with the same bytes in files: it can only be asked by GET."""
    root = folder / "nginx"
    (root / "files").mkdir(parents=True)
    for number in range(QUESTIONS):
        (root / "files" / str(number)).write_bytes(ask(ours.server.url, number).content)
    port = free_port()
    (root / "nginx.conf").write_text(_NGINX.format(user=getuser(), workers=WORKERS, port=port, root=root / "files"))
    command = [*debian("nginx"), "-p", str(root), "-c", "nginx.conf"]
    with running(command, f"http://127.0.0.1:{port}", "/0", folder / "nginx.log", {}) as server:
        yield Front(server, tuple(Request(f"/{number}") for number in range(QUESTIONS)))


@contextmanager
def litellm_proxy(folder: Path, upstream: str) -> Iterator[Front]:
    """LiteLLM's proxy with its cache in memory, filled in both workers before it is measured."""
    file = folder / "litellm.yaml"
    file.write_text(_LITELLM.format(upstream=upstream, key=KEY))
    port = free_port()
    command = [litellm(), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--num_workers", str(WORKERS), "--telemetry", "False"]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    url = f"http://127.0.0.1:{port}"
    with running(command, url, "/health/liveliness", folder / "litellm.log", environment, start_s=_START_S) as server:
        for _ in range(10):  # each worker has a cache of its own, and which of them is asked is chance
            for number in range(QUESTIONS):
                ask(server.url, number)
        yield Front(server, CHATS)


def asked(upstream: Running) -> int:
    """How many questions the model server was asked."""
    seen: int = json.loads(httpx.get(f"{upstream.url}/seen").content)
    return seen
