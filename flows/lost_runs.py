"""Runs that Prefect shows as running although nobody works on them: a killed worker's, or a machine's that is gone."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Crashed


def pid_of(run: FlowRun) -> int | None:
    """The process of a run on whatever host, None where Prefect was not told."""
    return int(run.infrastructure_pid.rsplit(":", 1)[-1]) if run.infrastructure_pid else None


def died_here(run: FlowRun) -> bool:
    """Whether the run's process was one of this host and is no more."""
    pid = pid_of(run)
    if pid is None or not str(run.infrastructure_pid).startswith(f"{socket.gethostname()}:"):
        return False
    return not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether this host has such a process, and it has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def crash(client: SyncPrefectClient, run: FlowRun, why: str) -> None:
    """Mark the run as crashed."""
    lost: State[None] = Crashed(message=f"{why}; what was finished is kept")
    client.set_flow_run_state(run.id, lost, force=True)


def crash_lost(client: SyncPrefectClient, runs: list[FlowRun], lost: Callable[[FlowRun], str]) -> list[FlowRun]:
    """Mark those as crashed of which ``lost`` says why they are; returns the others."""
    still = []
    for run in runs:
        if why := lost(run):
            crash(client, run, why)
        else:
            still.append(run)
    return still
