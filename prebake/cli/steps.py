"""The steps of a night as commands of their own: ingest, mine, plan, bake, publish."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from prebake.cli.context import Json, Route, parse_day, progress_for, settings_of
from prebake.cli.output import show
from prebake.errors import PrebakeError
from prebake.stop import stop_on_signals


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (ingest, mine, plan, bake, publish):
        app.command()(command)


def ingest(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(help="Files, folders, globs or s3://bucket/... ; .gz and .zst too.")],
    preset: Annotated[
        str | None,
        typer.Option(help="Layout: prebake, openai, litellm, langfuse or columns (as [ingest.columns] says)."),
    ] = None,
    json: Json = False,
) -> None:
    """Read query logs. Reading a file twice changes nothing.

    Rows that cannot be read go to the table `rejects` with file, line and reason, and never stop the rest.

    Example: prebake ingest 'logs/2026-11-*.jsonl.zst' --preset litellm
    """
    from tasks.ingest import ingest as step

    with _step(context, json) as run:
        show("ingest", run(step, paths, preset=preset), json)


def mine(
    context: typer.Context,
    day: Annotated[list[str] | None, typer.Option("--day", help="Count this day again; may be given again.")] = None,
    json: Json = False,
) -> None:
    """Count each day's prompts; without --day every day that is new or has changed.

    Example: prebake mine --day 2026-11-22
    """
    from tasks.mine import mine as step

    with _step(context, json) as run:
        show("mine", run(step, days=[parse_day(text) for text in day] if day else None), json)


def plan(
    context: typer.Context,
    day: Annotated[str, typer.Option(help="Last day of log to look at: YYYY-MM-DD, today, yesterday.")] = "yesterday",
    route: Route = None,
    redo: Annotated[bool, typer.Option("--redo", help="Plan to bake even what is fresh.")] = False,
    json: Json = False,
) -> None:
    """Decide what to bake under the budget, and say why, row by row, in the table `plan`.

    Example: prebake plan --day 2026-11-22 && prebake sql "select decision, reason, count(*) from plan group by all"
    """
    from tasks.night import check_routes
    from tasks.plan import plan as step

    check_routes(settings_of(context), route)
    with _step(context, json) as run:
        show("plan", run(step, parse_day(day), now=datetime.now(UTC), routes=route, redo=redo), json)


def bake(
    context: typer.Context,
    plan_id: Annotated[str | None, typer.Argument(help="The plan; the newest one if not given.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Engines side by side, each on GPUs of its own; on Ray: most."),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Bake on this Ray cluster: host:port, ray://..., auto, or local for one here.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs of a worker on Ray; else as engine.args say. 0: a CPU each.")
    ] = None,
    json: Json = False,
) -> None:
    """Answer a plan's prompts with the model. Stopped or killed, the same command goes on where it was.

    Example: prebake bake --workers 4
    """
    from storage.catalog import newest_plan
    from tasks.groups import leave

    if gpus is not None and ray is None:
        raise typer.BadParameter("it goes with --ray; else engine.args say how many GPUs an engine takes")
    with ExitStack() as stack:
        run = stack.enter_context(_step(context, json, max_machines=workers))
        step, options = _on_ray(stack, ray, workers, gpus) if ray else _here(workers)
        chosen = plan_id or newest_plan(run.store)
        with run.store.ledger.running("bake", None, {"plan_id": chosen}) as run_id:
            report = run(step, chosen, run_id=run_id, **options)
        show("bake", report, json)
    leave(settings_of(context))


def publish(context: typer.Context, json: Json = False) -> None:
    """Put the baked answers into service: a new snapshot for the gateway, a new answers.duckdb for SQL.

    Example: prebake publish && prebake snapshots
    """
    from tasks.publish import publish as step

    with _step(context, json) as run:
        with run.store.ledger.running("publish", None, {}) as run_id:
            report = run(step, run_id=run_id, now=datetime.now(UTC))
        show("publish", report, json)


def _here(workers: int | None) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The step that bakes on this machine, in this process or in several of its own."""
    from tasks.bake import bake as step
    from tasks.machines import bake_on_machines
    from tasks.owner import owner_name
    from tasks.processes import Processes

    return (step, {"owner": owner_name()}) if workers is None else (bake_on_machines, {"make": Processes})


def _on_ray(
    stack: ExitStack, address: str, workers: int | None, gpus: int | None
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The step that bakes on the Ray cluster at that address, which stays connected until the stack is closed."""
    try:
        from tasks.bake_ray import bake_on_ray, ray_cluster
    except ModuleNotFoundError as error:
        raise PrebakeError(f"{error.name} is not installed here; install the extra `ray` (see requirements/)") from None
    stack.enter_context(ray_cluster(address))
    return bake_on_ray, {"workers": workers or 1, "gpus": gpus}


class _Runner:
    """Calls a step with the open store, the settings, the progress display and the stop."""

    def __init__(self, store: Any, call: Callable[..., Any]) -> None:
        self.store = store
        self._call = call

    def __call__(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._call(step, *args, **kwargs)


@contextmanager
def _step(context: typer.Context, json: bool, *, max_machines: int | None = None) -> Iterator[_Runner]:
    from storage.store import open_store

    settings = settings_of(context)
    if max_machines is not None:
        capacity = settings.capacity.model_copy(update={"max_machines": max_machines})
        settings = settings.model_copy(update={"capacity": capacity})
    with stop_on_signals() as stop, open_store(settings) as store:
        progress = progress_for(json)
        yield _Runner(
            store,
            lambda step, *args, **kwargs: step(store, settings, *args, progress=progress, stop=stop, **kwargs),
        )
