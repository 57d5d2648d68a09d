"""The list of commands and the options they share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from prebake import __version__
from prebake.cli import answers, doctor, keys, nights, serving, settings_file, spot, steps
from prebake.cli.context import Shared
from prebake.redaction import log_to_stderr

GUIDE = """
Answers tomorrow's questions tonight.

prebake reads the query log of an LLM product, finds the prompts that will come back, bakes their answers in batch
with vLLM, and serves them from a store that the gateway reads before it calls the model.

A first night, step by step:

\b
  prebake init                        write a commented prebake.toml
  prebake doctor                      check settings, store, engine, and say what to do
  prebake ingest logs/*.jsonl.zst     read the query log
  prebake nightly                     mine, plan, bake, publish: what a schedule runs
  prebake serve                       the gateway: point an OpenAI client's base_url at it
  prebake sql "from answers_current"  look into the store

Exit codes: 0 done, 1 other trouble, 2 settings or usage, 3 input, 4 storage, 5 another night is running, 6 engine,
7 budget, 130 stopped by a signal (what was finished is kept, the same command goes on).
"""

app = typer.Typer(
    name="prebake", help=GUIDE, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"prebake {__version__}")
        raise typer.Exit


@app.callback()
def shared(
    context: typer.Context,
    settings: Annotated[
        Path | None,
        typer.Option("--settings", "-s", help="Settings file; else PREBAKE_SETTINGS, else prebake.toml here or above."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Log everything; show tracebacks.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options that stand before the command."""
    log_to_stderr(logging.DEBUG if debug else logging.WARNING)
    context.obj = Shared(settings)


for module in (settings_file, doctor, steps, nights, answers, keys, serving, spot):
    module.register(app)
