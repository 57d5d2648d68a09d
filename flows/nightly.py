"""The night as a Prefect flow. In: the form's parameters. Out: a published snapshot and the run's artifacts."""

from __future__ import annotations

from datetime import date
from functools import partial
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from flows.pool import PoolRuns
from flows.run import last_full_day, run, run_name, run_step
from prebake.progress import Progress
from prebake.settings import Settings
from prebake.stop import Stop
from tasks.night import NightReport, Redo, check_days, check_routes, night


def _name() -> str:
    return run_name("nightly", str(flow_run.parameters.get("day") or last_full_day()))


@flow(name="nightly", flow_run_name=_name, retries=0, persist_result=False)
def nightly(
    day: date | None = None,
    routes: list[str] = [],  # noqa: B006 - the form shows a plain list; it is never changed
    redo: Redo = Redo.MISSING,
    wait_minutes: Annotated[int, Field(ge=0, le=1440)] = 360,
    settings_file: str = "",
) -> State[Any]:
    """Ingest the log, mine it, plan, bake, publish and report: one night. Stopped, run it again and it goes on.

    Args:
        day: Last day of log to look at (UTC). None: the last full day before the time this run was scheduled for.
        routes: Names of the routes to plan, as the settings have them. Empty: all.
        redo: What to do again although it is there: missing (nothing), counts (count the day again), answers (bake again even what is fresh) or all.
        wait_minutes: How long to wait, in minutes, while another night holds the store; then the run fails and says who does.
        settings_file: Path of prebake.toml on the worker's machine. Empty: PREBAKE_SETTINGS, else the nearest prebake.toml.
    """  # noqa: E501 - Prefect takes one line per parameter as the form's help text
    last = day or last_full_day()

    def work(settings: Settings, progress: Progress, stop: Stop) -> list[NightReport]:
        check_days(last, last)
        check_routes(settings, routes)
        report = night(
            settings,
            last,
            routes=routes or None,
            redo=redo,
            run_step=run_step,
            make=partial(PoolRuns, settings_file),
            progress=progress,
            stop=stop,
        )
        return [report]

    return run(settings_file, wait_minutes, work)
