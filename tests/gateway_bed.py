"""What the gateway's tests stand on: a store with answers, a real upstream and a real gateway, each a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import openai
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from prebake.answer import Answer
from prebake.loading import load
from prebake.request import Keyed, key_request
from prebake.settings import Settings, Store
from storage.objects import open_objects
from storage.snapshot import publish_snapshot

ROOT = Path(__file__).parents[1]
START_S = 180.0
SETTINGS = """
[[routes]]
name = "faq"
scope = "shared"
fold = "text"
models = ["tiny", "busy", "broken", "silent", "dies", "endless"]

[[routes]]
name = "private"
scope = "tenant"
models = ["mine"]
"""


@dataclass
class Running:
    """A server process; ``url`` has no path."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @cached_property
    def client(self) -> openai.OpenAI:
        """The real client, without retries, so that each error is seen."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="sk-test", max_retries=0, timeout=20)

    def ready(self) -> dict[str, Any]:
        """What /readyz says."""
        state: dict[str, Any] = httpx.get(f"{self.url}/readyz").json()
        return state


@contextmanager
def running(
    command: list[str], url: str, health: str, log: Path, environment: dict[str, str], *, start_s: float = START_S
) -> Iterator[Running]:
    """Run a server until the block ends; it is ready when ``health`` answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
        try:
            wait_until(lambda: answers(url + health) or process.poll() is not None, start_s)
            assert process.poll() is None, log.read_text()
            yield Running(url, process, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    pass
                finally:
                    process.kill()  # whatever interrupts the wait; nothing happens to a process that has ended
                    process.wait()


@contextmanager
def upstream_server(folder: Path, port: int = 0) -> Iterator[Running]:
    """The small model server."""
    port = port or free_port()
    command = [sys.executable, str(ROOT / "tests" / "openai_upstream.py"), str(port)]
    with running(command, f"http://127.0.0.1:{port}", "/seen", folder / "upstream.log", {}) as server:
        yield server


@contextmanager
def gateway_server(folder: Path, upstream: str, *, settings: str = SETTINGS, **options: Any) -> Iterator[Running]:
    """``prebake serve`` over the store in ``folder``; ``options`` are keys of [gateway]."""
    file = write_settings(folder, settings)
    port = free_port()
    environment = {"PREBAKE_GATEWAY__UPSTREAM": f"{upstream}/v1", "PREBAKE_GATEWAY__RELOAD_S": "0.1"}
    environment |= {"PREBAKE_GATEWAY__LOG_FLUSH_S": "0.3"}
    environment |= {f"PREBAKE_GATEWAY__{name.upper()}": str(value) for name, value in options.items()}
    command = [sys.executable, "-m", "prebake", "--settings", str(file), "serve", "--port", str(port)]
    with running(command, f"http://127.0.0.1:{port}", "/healthz", folder / "gateway.log", environment) as server:
        yield server


def write_settings(folder: Path, settings: str = SETTINGS) -> Path:
    """A settings file whose store lies beside it."""
    file = folder / "prebake.toml"
    file.write_text(settings)
    return file


def ask(text: str, model: str = "tiny", **fields: Any) -> dict[str, Any]:
    """A request body with one user message."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def answer_to(
    settings: Settings,
    body: dict[str, Any],
    message: dict[str, Any] | str,
    *,
    tenant: str | None = None,
    namespace: str = "",
    **fields: Any,
) -> Answer:
    """The night's answer to a request, as the gateway must find it."""
    key = key_request(body, settings.route_table, tenant, namespace)
    assert isinstance(key, Keyed), key
    if isinstance(message, str):
        message = {"role": "assistant", "content": message, "refusal": None}
    now = datetime.now(UTC)
    values = {
        "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "model": "night-model",
        "run_id": "run-1",
        "baked_at": now - timedelta(hours=3),
        "expires_at": now + timedelta(days=1),
    }
    return Answer(key.fingerprint, route=key.route.name, message_json=orjson.dumps(message), **{**values, **fields})


def publish(folder: Path, answers: Iterable[Answer], run_id: str = "run-1") -> str:
    """Publish a snapshot in the store of ``folder``; returns its version."""
    objects = open_objects(Store(root=str(folder / "prebake-store")))
    return publish_snapshot(objects, answers, run_id=run_id, keep=3, now=datetime.now(UTC)).version


def settings_of(folder: Path, settings: str = SETTINGS) -> Settings:
    """The settings the gateway in ``folder`` has."""
    return load(write_settings(folder, settings))


def logged(folder: Path) -> list[dict[str, Any]]:
    """All rows of the request log, in the order of their times."""
    files = sorted((folder / "prebake-store" / "gateway-log").rglob("*.parquet"))
    if not files:
        return []
    rows: list[dict[str, Any]] = pa.concat_tables(
        [pq.read_table(file, partitioning=None) for file in files]
    ).to_pylist()
    return sorted(rows, key=lambda row: row["ts"])


def answers(url: str) -> bool:
    """Whether a server answers there."""
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


def wait_until(true: Any, timeout_s: float = 10.0) -> None:
    """Wait for something to become true; fails after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
