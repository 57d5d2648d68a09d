"""One bake worker as a Prefect flow: takes shards of a plan until none are left. In: a plan. Out: answers in the store.

Any number may run at once, on machines that may go at any moment. Prefect never runs one again by itself
(``retries=0``, no rescheduling): a run that ended is replaced by the night that started it, on a machine that lives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import Flow, flow
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.artifacts import BakeProgress
from flows.run import logs_in_run
from prebake.errors import Interrupted, PrebakeError
from prebake.loading import load
from prebake.settings import Settings
from prebake.stop import Stop, stop_on_signals
from storage.catalog import newest_plan
from storage.store import open_store
from tasks.bake import BakeReport, bake
from tasks.groups import leave
from tasks.owner import owner_name


def _name() -> str:
    return f"bake {flow_run.parameters.get('plan_id') or 'the newest plan'}"


def _leave(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - called by keyword
    """Called when Prefect knows of the run's end: its machine may go."""
    leave(_settings(str(flow_run.parameters.get("settings_file", ""))))


@flow(name="bake-worker", flow_run_name=_name, retries=0, persist_result=False, on_completion=[_leave])
def bake_worker(plan_id: str = "", settings_file: str = "") -> State[Any]:
    """Bake what is left of a plan, together with all other workers that do. Start as many as you have machines.

    Args:
        plan_id: The plan. Empty: the newest one.
        settings_file: Path of prebake.toml on the worker's machine. Empty: PREBAKE_SETTINGS, else the nearest prebake.toml.
    """  # noqa: E501 - Prefect takes one line per parameter as the form's help text
    with stop_on_signals() as stop, logs_in_run():
        try:
            report = _bake(plan_id, settings_file, stop)
        except Interrupted:
            return _drained(stop)
        except PrebakeError as error:
            return Failed(message=str(error))
    left = f"; {report.unpaid:,} left that the budget cannot pay" if report.unpaid else ""
    return Completed(message=f"{report.answers + report.truncated:,} answers baked{left}")


def _bake(plan_id: str, settings_file: str, stop: Stop) -> BakeReport:
    settings = _settings(settings_file)
    with open_store(settings) as store:
        chosen = plan_id or newest_plan(store)
        owner = f"{owner_name()}/{flow_run.id}"  # by its end the night knows the run
        with store.ledger.running("bake", None, {"plan_id": chosen}) as run_id:
            return bake(store, settings, chosen, run_id=run_id, owner=owner, progress=BakeProgress(), stop=stop)


def _settings(file: str) -> Settings:
    return load(Path(file) if file else None)


def _drained(stop: Stop) -> State[Any]:
    """Cancelled by name where somebody cancelled it, Preempted where the cloud takes the machine: both final."""
    message = f"drained: {stop.reason}; what was finished is kept, another worker goes on"
    if stop.notice:
        return State(type=StateType.CANCELLED, name="Preempted", message=message)
    return Cancelled(message=message)
