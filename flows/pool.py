"""Bake workers as runs of a Prefect deployment: a night starts them on a work pool, wherever its machines are.

In: how many are needed. Out: runs, started and cancelled. Prefect only starts them: who is at work, and what is done,
stands in the ledger, so a run whose worker the ledger has not heard of for its lease is marked as crashed.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows.lost_runs import crash_lost, died_here
from prebake.errors import SettingsError
from prebake.settings import Settings
from storage.store import Store
from tasks.machines import Need

_OPEN: Final = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING)
_BAD: Final = (StateType.FAILED, StateType.CRASHED)
_SILENT_START: Final = timedelta(minutes=10)  # a run that is under way has joined the ledger by then
_POLL_S: Final = 0.5


class PoolRuns:
    """The runs that bake one plan; those that an earlier night left at work count too."""

    def __init__(self, settings_file: str, store: Store, settings: Settings, plan_id: str, run_id: str) -> None:
        self._store, self._plan_id, self._run_id = store, plan_id, run_id
        self._tag = f"plan {plan_id}"
        self._parameters = {"plan_id": plan_id, "settings_file": settings_file}
        self._client: SyncPrefectClient = get_client(sync_client=True)
        self._deployment = self._find(settings.capacity.deployment)
        self._started = 0
        self._known_bad = {run.id for run in self._runs(_BAD)}

    def tend(self, need: Need) -> list[str]:
        """See ``Machines``."""
        runs = crash_lost(self._client, self._runs(_OPEN), self._lost)
        for _ in range(need.workers - len(runs)):
            self._start()
        bad = [run for run in self._runs(_BAD) if run.id not in self._known_bad]
        self._known_bad |= {run.id for run in bad}
        return [f"{run.name}: {run.state.message if run.state else 'lost'}" for run in bad]

    def running(self) -> int:
        """See ``Machines``."""
        return len(crash_lost(self._client, self._runs(_OPEN), self._lost))

    def stop(self, within_s: float) -> None:
        """See ``Machines``: each run is cancelled, and drains."""
        for run in self._runs(_OPEN):
            if run.state is not None and not run.state.is_cancelling():
                self._client.set_flow_run_state(run.id, Cancelling(message="the night that started it has ended"))
        give_up = time.monotonic() + within_s
        while self.running() and time.monotonic() < give_up:
            time.sleep(_POLL_S)

    def _find(self, name: str) -> UUID:
        try:
            return self._client.read_deployment_by_name(name).id
        except ObjectNotFound:
            raise SettingsError(
                f"capacity.deployment: Prefect has no {name!r}; `prebake prefect` deploys bake-worker/bake-worker"
            ) from None

    def _start(self) -> None:
        self._started += 1
        self._client.create_flow_run_from_deployment(
            self._deployment,
            parameters=self._parameters,
            tags=[self._tag],
            # Said again, after an answer that was lost, it starts nothing more.
            idempotency_key=f"{self._run_id} {self._started}",
        )

    def _runs(self, states: tuple[StateType, ...]) -> list[FlowRun]:
        wanted: dict[str, Any] = {"tags": {"all_": [self._tag]}, "state": {"type": {"any_": list(states)}}}
        return self._client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted))

    def _lost(self, run: FlowRun) -> str:
        """Why nobody works on the run any more, or nothing."""
        if run.state is None or run.state.type not in (StateType.RUNNING, StateType.CANCELLING):
            return ""
        workers = [w for w in self._store.ledger.workers.of_plan(self._plan_id) if w.owner.endswith(str(run.id))]
        if any(died_here(worker.owner) for worker in workers):
            return "its process is gone"
        if workers and not any(worker.alive or worker.end for worker in workers):
            return "its machine has not been heard of for a lease's time"
        if not workers and run.start_time and datetime.now(UTC) - run.start_time > _SILENT_START:
            return "it never reached the ledger"
        return ""
