"""The day: serve the store through the gateway, ask it in SQL."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from prebake.cli.context import Json, settings_of
from prebake.cli.output import print_json, show_rows
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
        text = sys.stdin.read() if query == "-" else query
        try:
            if csv:
                pyarrow.csv.write_csv(connection.sql(text).to_arrow_table(), sys.stdout.buffer)
                return
            result = connection.execute(text)
            columns = [column[0] for column in result.description or ()]
            if json:
                print_json({"columns": columns, "rows": result.fetchall()})
            else:
                _show_first(columns, result.fetchmany(ROWS_SHOWN + 1))
        except duckdb.Error as error:
            raise InputError(f"SQL: {error}") from None


def _show_first(columns: list[str], rows: list[tuple[object, ...]]) -> None:
    show_rows(columns, rows[:ROWS_SHOWN])
    if len(rows) > ROWS_SHOWN:
        typer.echo(f"... the first {ROWS_SHOWN} rows; --csv or --json prints all")
