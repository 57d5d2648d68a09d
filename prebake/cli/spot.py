"""``prebake spot``: what the capacity settings would have cost on traces of spot machines, beside other policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prebake.cli.context import Json, settings_of
from prebake.cli.output import plain, print_json, show_rows


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(spot)


def spot(
    context: typer.Context,
    trace: Annotated[Path | None, typer.Argument(help="CSV, Parquet, JSON or a folder of zones; else made up.")] = None,
    work_h: Annotated[float, typer.Option(help="Hours of work for one machine.")] = 48,
    deadline: Annotated[float, typer.Option(help="Deadline, as a factor on the work.")] = 1.5,
    windows: Annotated[int, typer.Option(min=1, help="Random beginnings to play.")] = 24,
    seed: Annotated[int, typer.Option(help="Another seed, other beginnings.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the first of them here (PNG).")] = None,
    json: Json = False,
) -> None:
    """Play the [capacity] settings on a trace of spot availability and prices: cost, missed deadlines, work lost.

    Example: prebake spot my-zones.csv --deadline 2 --plot night.png
    """
    from capacity.compare import choose, compare
    from capacity.draw import draw
    from capacity.policy import Limits, decide
    from capacity.simulate import Job, simulate
    from capacity.synthetic import make_trace
    from capacity.trace import load_trace

    chosen = settings_of(context).capacity
    limits = Limits(max_machines=chosen.max_machines, cold_start_h=chosen.cold_start_h, caution=chosen.caution)
    traces = [load_trace(trace)] if trace else [make_trace(number) for number in range(8)]
    found = compare(traces, limits, work_h=work_h, deadlines=(deadline,), windows=windows, seed=seed)
    if plot is not None:
        job = Job(work_h, work_h * deadline)
        (window,) = choose(traces, job, 1, 24, seed)
        outcome = simulate(window.trace, job, decide, limits, history=window.history)
        draw(window.trace, job, outcome, plot, title="prebake")
    if json:
        print_json(found)
        return
    columns = ("policy", "usd", "cost_over_oracle", "cost_over_on_demand", "missed", "tokens_twice_share", "starts")
    rows = [[plain(row)[name] for name in columns] for row in found.rows]
    title = (
        f"{found.windows} windows, {found.zones} zones, up to {found.max_machines} machines, {found.work_h:g} h of work"
    )
    show_rows([name.replace("_", " ") for name in columns], rows, title)
