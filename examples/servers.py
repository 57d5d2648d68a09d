"""The two servers of the demo as processes of their own: the online model (vLLM's own server) and the gateway."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from prebake.errors import EngineError
from prebake.settings import Settings

START_S = 300.0
STOP_S = 15.0


@dataclass(frozen=True)
class Server:
    """A server that was started; ``url`` is its OpenAI address, with /v1."""

    url: str
    health: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_until_up(self) -> None:
        """Return when it answers. Raises EngineError when it ends first or takes too long."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                httpx.get(self.health, timeout=2).raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.2)
            else:
                return
        raise EngineError(f"{self.health} does not answer; what the server said is in {self.log}")


@contextmanager
def online_model(settings: Settings, names: Sequence[str], folder: Path) -> Iterator[Server]:
    """vLLM's OpenAI server with the settings' model under the given names; it is still starting when this returns."""
    port = _free_port()
    config = {name.replace("_", "-"): value for name, value in settings.engine.args.items()}
    config |= {"model": settings.engine.model, "served-model-name": list(names), "host": "127.0.0.1", "port": port}
    config |= {"disable-log-stats": True, "uvicorn-log-level": "warning"}
    file = folder / "online-model.yaml"
    file.write_text(json.dumps(config, indent=1))  # JSON is YAML too
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--config", str(file)]
    offline = {"HF_HUB_OFFLINE": "1"} if Path(settings.engine.model).is_dir() else {}
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **offline}
    with _process(command, folder / "online-model.log", environment) as process:
        address = f"http://127.0.0.1:{port}"
        yield Server(f"{address}/v1", f"{address}/health", process, folder / "online-model.log")


@contextmanager
def gateway(settings_file: Path, store: str, upstream: str, folder: Path) -> Iterator[Server]:
    """``prebake serve`` on a free port in front of ``upstream``, ready to answer."""
    port = _free_port()
    command = [sys.executable, "-m", "prebake", "--settings", str(settings_file), "serve", "--port", str(port)]
    environment = {"PREBAKE_GATEWAY__UPSTREAM": upstream, "PREBAKE_STORE__ROOT": store}
    with _process(command, folder / "gateway.log", environment) as process:
        address = f"http://127.0.0.1:{port}"
        server = Server(f"{address}/v1", f"{address}/healthz", process, folder / "gateway.log")
        server.wait_until_up()
        yield server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _process(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its children in a group of its own, ended with it: first asked, then killed."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
        # vLLM's engine lives in a child of its own, which may outlive the server.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
