"""What we ask of a Prefect server: the work pool, the schedule's switch, the end of runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling
from prefect.workers.process import ProcessWorker

from flows.lost_runs import crash_lost, is_alive

SCHEDULED: Final = "nightly/nightly"


class Prefect:
    """A Prefect server, reached by its API."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client

    @classmethod
    @contextmanager
    def at(cls, url: str) -> Iterator[Prefect]:
        """The server at that address."""
        with SyncPrefectClient(f"{url}/api") as client:
            yield cls(client)

    def make_pool(self, name: str) -> None:
        """Make the work pool if it is not there; one that is there stays as its owner set it."""
        try:
            self._client.read_work_pool(name)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            self._client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))

    def is_scheduled(self, deployment: str) -> bool:
        """Whether somebody switched the deployment's schedule on; False where there is none yet."""
        try:
            return any(schedule.active for schedule in self._client.read_deployment_by_name(deployment).schedules)
        except ObjectNotFound:
            return False

    def schedule(self, deployment: str, active: bool) -> None:
        """Switch the deployment's schedules on or off: deploying anew must not undo what the owner chose."""
        found = self._client.read_deployment_by_name(deployment)
        for schedule in found.schedules:
            self._client.update_deployment_schedule(found.id, schedule.id, active=active)

    def crash_lost_runs(self, pool: str) -> None:
        """Mark the pool's runs whose process is gone as crashed: all are this host's; a killed worker leaves them."""

        def lost(run: FlowRun) -> str:
            gone = run.infrastructure_pid and not is_alive(_pid(run.infrastructure_pid))
            return "its process is gone" if gone else ""

        crash_lost(self._client, self._started(pool), lost)

    def cancel(self, pool: str, ours: Callable[[int], bool], *, within_s: float) -> None:
        """Cancel the pool's runs whose process id is ``ours``, and wait for their end."""
        runs = [run for run in self._started(pool) if run.infrastructure_pid and ours(_pid(run.infrastructure_pid))]
        for run in runs:
            self._client.set_flow_run_state(run.id, Cancelling(message="Prefect was told to stop"))
        deadline = time.monotonic() + within_s
        while any(not self._is_over(run) for run in runs) and time.monotonic() < deadline:
            time.sleep(0.5)

    def _started(self, pool: str) -> list[FlowRun]:
        states = {"state": {"type": {"any_": [StateType.PENDING, StateType.RUNNING]}}}
        return self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(states),
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
        )

    def _is_over(self, run: FlowRun) -> bool:
        state = self._client.read_flow_run(run.id).state
        return state is not None and state.is_final()


def _pid(infrastructure_pid: str) -> int:
    return int(infrastructure_pid.rsplit(":", 1)[-1])
