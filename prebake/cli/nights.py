"""Whole nights and what they leave: nightly, backfill, snapshots, rollback, prefect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prebake.cli.context import Json, Route, parse_day, progress_for, settings_file_of, settings_of
from prebake.cli.output import plain, print_json, show, show_rows
from prebake.errors import PrebakeError
from prebake.stop import stop_on_signals

if TYPE_CHECKING:
    from tasks.night import NightReport

Path_ = Annotated[
    list[str] | None, typer.Option("--log", help="Log to read besides the gateway's; else [ingest] paths. May repeat.")
]
RedoOption = Annotated[
    str, typer.Option(help="What to do again although it is there: missing (nothing), counts, answers or all.")
]
Wait = Annotated[float, typer.Option(help="Seconds to wait for another night on this store before giving up.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (nightly, backfill, snapshots, rollback, prefect):
        app.command()(command)


def nightly(
    context: typer.Context,
    day: Annotated[str, typer.Option(help="Last day of log to look at: YYYY-MM-DD, today, yesterday.")] = "yesterday",
    route: Route = None,
    redo: RedoOption = "missing",
    log: Path_ = None,
    wait_s: Wait = 0,
    json: Json = False,
) -> None:
    """Run one night: ingest, mine, plan, bake, publish, report. Stopped or killed, run it again and it goes on.

    Example: prebake nightly --day 2026-11-22 --log 'logs/*.jsonl'
    """
    from tasks.night import night

    with stop_on_signals() as stop:
        report = night(
            settings_of(context),
            parse_day(day),
            routes=route,
            redo=_redo(redo),
            paths=log or None,
            wait_s=wait_s,
            progress=progress_for(json),
            stop=stop,
        )
    _show_nights([report], json)


def backfill(
    context: typer.Context,
    start: Annotated[str, typer.Option("--from", help="First day, YYYY-MM-DD.")],
    end: Annotated[str, typer.Option("--to", help="Last day, YYYY-MM-DD.")],
    route: Route = None,
    redo: RedoOption = "missing",
    log: Path_ = None,
    wait_s: Wait = 0,
    json: Json = False,
) -> None:
    """Run the nights of several days again, oldest first.

    Example: prebake backfill --from 2026-11-20 --to 2026-11-22 --redo counts
    """
    from tasks.night import backfill as run

    with stop_on_signals() as stop:
        reports = run(
            settings_of(context),
            parse_day(start),
            parse_day(end),
            routes=route,
            redo=_redo(redo),
            paths=log or None,
            wait_s=wait_s,
            progress=progress_for(json),
            stop=stop,
        )
    _show_nights(reports, json)


def snapshots(context: typer.Context, json: Json = False) -> None:
    """List the snapshots that the gateway can serve; the current one is marked.

    Example: prebake snapshots
    """
    from storage.objects import open_objects
    from storage.snapshot import current
    from storage.snapshot import snapshots as listed

    objects = open_objects(settings_of(context).store)
    now = current(objects)
    rows = [{"current": now is not None and m.version == now.version, **plain(m)} for m in listed(objects)]
    if json:
        print_json({"snapshots": rows})
    elif rows:
        columns = [name for name in rows[0] if not isinstance(rows[0][name], dict | list)]
        show_rows(columns, [[row[name] for name in columns] for row in rows])
    else:
        typer.echo("No snapshot yet; run: prebake nightly")


def rollback(
    context: typer.Context,
    version: Annotated[
        str | None, typer.Argument(help="Version to serve; the one before the current if empty.")
    ] = None,
    json: Json = False,
) -> None:
    """Serve an older snapshot again; every gateway follows within seconds.

    Example: prebake rollback
    """
    from storage.objects import open_objects
    from storage.snapshot import rollback as run

    show("now serving", run(open_objects(settings_of(context).store), version), json)


def prefect(
    context: typer.Context,
    home: Annotated[Path | None, typer.Option(help="Prefect's own files; else `prefect` in the store.")] = None,
    host: Annotated[str, typer.Option(help="Address the server listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port the server listens on.")] = 4200,
    server: Annotated[str, typer.Option(help="Use this running server (http://host:port) instead.")] = "",
) -> None:
    """Bring up Prefect: server, work pool, worker, the deployments nightly and backfill; until Ctrl-C.

    Example: prebake prefect --port 4200
    """
    try:
        from deployments.up import up
    except ModuleNotFoundError as error:
        raise PrebakeError(
            f"{error.name} is not installed here; install the extra `flows` (see requirements/)"
        ) from None

    up(settings_file_of(context), home=home, host=host, port=port, server=server)


def _redo(text: str) -> Any:
    from tasks.night import Redo

    try:
        return Redo(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r}: give missing, counts, answers or all", param_hint="--redo") from None


def _show_nights(reports: Sequence[NightReport], json: bool) -> None:
    if json:
        nights = [{name: value for name, value in plain(report).items() if name != "page"} for report in reports]
        print_json({"nights": nights})
        return
    for report in reports:
        show(f"night of {report.day}", _summary(report), json)
        typer.echo(f"the night in one page: reports/{report.run_id}.md in the store")


def _summary(report: NightReport) -> dict[str, Any]:
    tree = plain(report)
    return {
        "run": report.run_id,
        "plan": tree["plan"],
        "bake": tree["bake"],
        "publish": tree["publish"],
        "wall_s": report.wall_s,
    }
