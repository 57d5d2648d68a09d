"""Nights of several days again as a Prefect flow. In: the form's parameters. Out: as for each of those nights."""

from __future__ import annotations

from datetime import date
from functools import partial
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from flows.pool import PoolRuns
from flows.run import run, run_name, run_step
from prebake.progress import Progress
from prebake.settings import Settings
from prebake.stop import Stop
from tasks.night import NightReport, Redo, check_days, check_routes
from tasks.night import backfill as run_nights


def _name() -> str:
    return run_name("backfill", f"{flow_run.parameters['start']} to {flow_run.parameters['end']}")


@flow(name="backfill", flow_run_name=_name, retries=0, persist_result=False)
def backfill(
    start: date,
    end: date,
    routes: list[str] = [],  # noqa: B006 - the form shows a plain list; it is never changed
    redo: Redo = Redo.MISSING,
    wait_minutes: Annotated[int, Field(ge=0, le=1440)] = 360,
    settings_file: str = "",
) -> State[Any]:
    """Run the nights of several days again, oldest first. Stopped, run it again and it goes on.

    Args:
        start: First day (UTC).
        end: Last day (UTC), included; not before the first and not in the future.
        routes: Names of the routes to plan, as the settings have them. Empty: all.
        redo: What to do again although it is there: missing (nothing), counts (count the days again), answers (bake again even what is fresh) or all.
        wait_minutes: How long to wait, in minutes, while another night holds the store; then the run fails and says who does.
        settings_file: Path of prebake.toml on the worker's machine. Empty: PREBAKE_SETTINGS, else the nearest prebake.toml.
    """  # noqa: E501 - Prefect takes one line per parameter as the form's help text

    def work(settings: Settings, progress: Progress, stop: Stop) -> list[NightReport]:
        check_days(start, end)
        check_routes(settings, routes)
        return run_nights(
            settings,
            start,
            end,
            routes=routes or None,
            redo=redo,
            run_step=run_step,
            make=partial(PoolRuns, settings_file),
            progress=progress,
            stop=stop,
        )

    return run(settings_file, wait_minutes, work)
