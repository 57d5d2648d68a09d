"""Prefect for one machine in one command: server, work pool, worker and deployments, and their orderly end.

In: a settings file. Out: processes that run until a signal; runs that are under way are drained first.
``prebake prefect --help`` has the options.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from deployments.server import SCHEDULED, Prefect
from prebake.errors import PrebakeError, SettingsError
from prebake.loading import ENV_FILE, find_file, load
from prebake.stop import Stop, stop_on_signals

ROOT: Final = Path(__file__).resolve().parent.parent
POOLS: Final = {"worker": "prebake", "gpu-worker": "prebake-gpu"}
"""The worker processes of this machine, by the pool that each serves."""
_START_S: Final = 300.0
_STOP_S: Final = 20.0
_DRAIN_S: Final = 40.0  # Prefect kills a run 30 s after its cancel


@dataclass(frozen=True)
class Child:
    """A process of ours in a session of its own, so that a Ctrl-C in the terminal reaches only us."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """PrebakeError if it ended by itself."""
        if (code := self.process.poll()) is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise PrebakeError(
                f"Prefect's {self.name} ended by itself (exit {code}): {lines[-1]}; all of it: {self.log}"
            )


def up(
    settings_file: Path | None = None,
    *,
    home: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 4200,
    server: str = "",
) -> None:
    """Bring up Prefect's server, work pools, workers and the deployments; serve until SIGTERM or Ctrl-C; end in order.

    ``home`` has Prefect's own database and logs (None: ``prefect`` in the store's folder); ``server`` names a server
    that runs already (http://host:port) and is left running. Raises PrebakeError, SettingsError.
    """
    file = settings_file or find_file()
    home = _home(file, home)
    url = server.rstrip("/").removesuffix("/api") or f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    environment = _environment(home, url, file)
    try:
        with stop_on_signals() as stop, ExitStack() as stack:
            _run(stack, stop, home, host, port, url, environment, started=not server)
    except httpx.HTTPError as error:
        raise PrebakeError(
            f"{url}: Prefect's server failed to answer ({error!r}); its log: {home}/server.log"
        ) from error


def _run(
    stack: ExitStack, stop: Stop, home: Path, host: str, port: int, url: str, environment: dict[str, str], started: bool
) -> None:
    children = []
    if started:
        children.append(stack.enter_context(_server(home, host, port, url, environment, stop)))
    else:
        _wait_until_healthy(url, stop, None)
    if stop.requested:
        return
    prefect = stack.enter_context(Prefect.at(url))
    for pool in POOLS.values():
        prefect.make_pool(pool)
    switched_on = prefect.is_scheduled(SCHEDULED)
    _deploy(environment)
    prefect.schedule(SCHEDULED, switched_on)
    if started:  # a server of others may have runs on other machines
        for pool in POOLS.values():
            prefect.crash_lost_runs(pool)
    for name, pool in reversed(POOLS.items()):  # ended the other way round: a night stops its bake workers itself
        worker = stack.enter_context(
            _child(name, ("worker", "start", "--pool", pool, "--type", "process"), home, environment)
        )
        stack.callback(_drain, prefect, pool, worker)
        children.append(worker)
    _announce(url, prefect.is_scheduled(SCHEDULED))
    while not stop.wait(1.0):
        for child in children:
            child.check()
    _say("stopping: runs under way are drained first")


def _home(file: Path | None, home: Path | None) -> Path:
    root = load(file).store.root
    if home is None and "://" in root:
        raise SettingsError(f"the store is {root}: name a local folder for Prefect's own files with --home")
    home = (home or Path(root) / "prefect").resolve()
    home.mkdir(parents=True, exist_ok=True)
    return home


def _environment(home: Path, url: str, file: Path | None) -> dict[str, str]:
    """What the processes get: nothing of another Prefect on this machine, and no call to the outside."""
    return os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Relative: the pages also work through a forwarded port. Their files are kept out of the installed package.
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        ENV_FILE: str(file.resolve()) if file else "",
    }


@contextmanager
def _server(home: Path, host: str, port: int, url: str, environment: dict[str, str], stop: Stop) -> Iterator[Child]:
    if _listens(host, port):
        raise PrebakeError(
            f"{host}:{port} is taken: if it is a Prefect server, use it with --server {url}; else name another --port"
        )
    _say("starting Prefect's server ...")
    command = ("server", "start", "--host", host, "--port", str(port))
    with _child("server", command, home, environment) as child:
        _wait_until_healthy(url, stop, child)
        yield child


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, port)) == 0


@contextmanager
def _child(name: str, command: tuple[str, ...], home: Path, environment: dict[str, str]) -> Iterator[Child]:
    """A Prefect process; at the end it gets SIGTERM and, too slow, its whole session is killed.

    Our own handlers are set by now, so that the child starts with SIGINT at its default even under nohup: Prefect
    turns SIGTERM into SIGINT, and a process that ignores it would never end.
    """
    log = home / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            (sys.executable, "-m", "prefect", *command),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Child(name, process, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def _wait_until_healthy(url: str, stop: Stop, child: Child | None) -> None:
    waited_s = 0.0
    while not stop.requested:
        if child is not None:
            child.check()
        try:
            if httpx.get(f"{url}/api/health", timeout=5).is_success:
                return
        except httpx.HTTPError as error:
            if child is None or waited_s > _START_S:
                raise PrebakeError(
                    f"{url}: no Prefect server answers ({error}); is it up, is the address right?"
                ) from None
        stop.wait(0.5)
        waited_s += 0.5


def _deploy(environment: dict[str, str]) -> None:
    _say("deploying nightly, backfill and bake-worker ...")
    command = (sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all")
    done = subprocess.run(
        (*command, "--prefect-file", "deployments/prefect.yaml"),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    if done.returncode:
        raise PrebakeError(f"prefect deploy failed: {(done.stdout + done.stderr).strip()[-400:]}")


def _drain(prefect: Prefect, pool: str, worker: Child) -> None:
    """Cancel the runs in our worker's session and wait until they have kept what they finished."""
    prefect.cancel(pool, lambda pid: _session(pid) == worker.process.pid, within_s=_DRAIN_S)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _announce(url: str, scheduled: bool) -> None:
    state = "on" if scheduled else f"off; on with the switch at {url}/deployments"
    _say(f"Prefect is up: {url}")
    _say(f"nightly at 02:00 UTC is {state}")
    _say(f"run one now:  PREFECT_API_URL={url}/api prefect deployment run nightly/nightly")
    _say("Ctrl-C ends it all; a run under way keeps what it has")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
