"""Runs that Prefect shows as running although nobody works on them: a killed worker's, or a machine's that is gone."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Crashed


def died_here(owner: str) -> bool:
    """Whether a worker's process, by its name in the ledger (``tasks/owner.py``), was one of this host and is gone."""
    host, pid = owner.split("/")[0].rsplit(":", 1)
    return host == socket.gethostname() and not is_alive(int(pid))


def is_alive(pid: int) -> bool:
    """Whether this host has such a process, and it has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def crash_lost(client: SyncPrefectClient, runs: list[FlowRun], lost: Callable[[FlowRun], str]) -> list[FlowRun]:
    """Mark those as crashed of which ``lost`` says why they are; returns the others."""
    still = []
    for run in runs:
        if why := lost(run):
            crashed: State[None] = Crashed(message=f"{why}; what was finished is kept")
            client.set_flow_run_state(run.id, crashed, force=True)
        else:
            still.append(run)
    return still
