"""The day: serve the store through the gateway, ask it in SQL."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from prebake.cli.context import Json, settings_file_of, settings_of
from prebake.cli.output import print_json
from prebake.errors import InputError

ROWS_SHOWN = 50


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (serve, sql):
        app.command()(command)


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on; else [gateway] host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one; else [gateway] port.")] = None,
) -> None:
    """Run the gateway: hits from the store, everything else to [gateway] upstream, unchanged.

    Example: prebake serve --port 8300, then OpenAI(base_url="http://127.0.0.1:8300/v1")
    """
    from gateway.serve import serve as run

    settings = settings_of(context)
    run(
        settings,
        host=settings.gateway.host if host is None else host,
        port=settings.gateway.port if port is None else port,
        file=settings_file_of(context),
    )


def sql(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="A DuckDB query; - reads it from standard input.")] = "show tables",
    csv: Annotated[bool, typer.Option("--csv", help="Print every row as CSV.")] = False,
    json: Json = False,
) -> None:
    """Ask the store: views query_log, rejects, daily_counts, plan, answers, answers_current, runs.

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
