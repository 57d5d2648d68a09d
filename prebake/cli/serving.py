"""The day: serve the store through the gateway, ask it in SQL."""

from __future__ import annotations

import sys
import threading
import webbrowser
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from prebake.cli.context import Json, Route, settings_file_of, settings_of
from prebake.cli.output import print_json, show_rows
from prebake.errors import InputError, SettingsError

if TYPE_CHECKING:
    from tasks.calibrate import Calibration

ROWS_SHOWN = 50


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (serve, sql, calibrate):
        app.command()(command)


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on; else [gateway] host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one; else [gateway] port.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the gateway's page in a browser.")] = False,
    json: Json = False,
) -> None:
    """Run the gateway: hits from the store, everything else to [gateway] upstream, unchanged.

    Example: prebake serve --port 8300, then OpenAI(base_url="http://127.0.0.1:8300/v1")
    """
    from gateway.serve import serve as run

    settings = settings_of(context)
    if open_page and not any(key.admin for key in settings.keys):
        raise SettingsError(
            "serve --open: the page needs an admin key; make one with `prebake key NAME --admin` and put it "
            "into the settings"
        )
    run(
        settings,
        host=settings.gateway.host if host is None else host,
        port=settings.gateway.port if port is None else port,
        file=settings_file_of(context),
        ready=partial(_say_where, open_page=open_page, json=json) if open_page or json else None,
    )


def _say_where(address: str, *, open_page: bool, json: bool) -> None:
    """Say where it serves, and show the page; a browser that takes its time must not hold up the gateway."""
    if json:
        print_json({"address": address})
    else:
        print(f"serving on {address}", flush=True)
    if not open_page:
        return
    page = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:") + "/admin"
    threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()


def sql(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="A DuckDB query; - reads it from standard input.")] = "show tables",
    csv: Annotated[bool, typer.Option("--csv", help="Print every row as CSV.")] = False,
    json: Json = False,
) -> None:
    """Ask the store: views query_log, rejects, daily_counts, plan, answers, answers_current, runs, near_misses.

    Example: prebake sql "select decision, reason, count(*) from plan group by all order by 3 desc"
    """
    import duckdb
    import pyarrow.csv

    from storage.catalog import connect
    from storage.store import open_store

    with open_store(settings_of(context)) as store, connect(store) as connection:
        try:
            result = connection.sql(sys.stdin.read() if query == "-" else query)
            if result is None:  # a statement without a result, such as SET
                return
            if csv:
                pyarrow.csv.write_csv(result.to_arrow_table(), sys.stdout.buffer)
            elif json:
                print_json({"columns": result.columns, "rows": result.fetchall()})
            else:
                result.show(max_rows=ROWS_SHOWN, max_width=Console().width)
        except duckdb.Error as error:
            raise InputError(f"SQL: {error}") from None


def calibrate(
    context: typer.Context,
    pairs: Annotated[
        Path | None, typer.Argument(help="Judged pairs (.parquet, .csv, .jsonl); else [near] pairs.")
    ] = None,
    route: Route = None,
    json: Json = False,
) -> None:
    """Find from which similarity on near hits may be served with a bounded error; each publish does it by itself.

    A pair has the columns asked, near (texts) and same (is one answer right for both?). Judge a random sample of what
    the gateway noted: prebake sql --csv "select route, asked, near, null as same from near_misses using sample 2000"

    Example: prebake calibrate judged.csv
    """
    from prebake.near import Embedding
    from tasks.calibrate import calibrations

    settings = settings_of(context)
    if pairs is not None:
        settings = settings.model_copy(update={"near": settings.near.model_copy(update={"pairs": str(pairs)})})
    routes = route or [found.name for found in settings.routes if found.near != "off"]
    if not settings.near.pairs or not routes:
        raise InputError("nothing to calibrate: name a file of judged pairs, and set near on a route (or give --route)")
    found = calibrations(settings, Embedding(settings.near.model), routes)
    if json:
        print_json({"routes": found})
    else:
        columns = ("route", "pairs", "kept apart", "serve from", "accepted", "wrong", "why not")
        show_rows(columns, [_calibrated(calibration) for calibration in found])


def _calibrated(found: Calibration) -> tuple[object, ...]:
    threshold = found.threshold
    served = (f"{threshold.similarity:.4f}", threshold.accepted, threshold.wrong) if threshold else ("never", "", "")
    return (found.route, found.pairs, found.refused, *served, found.reason)
