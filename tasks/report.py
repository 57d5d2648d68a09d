"""Report: the night on one page. In: the plan, the answers it brought, the day's counts. Out: Markdown, a picture, and
the decisions as table rows, for the terminal, for Prefect's artifacts or for a mail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import duckdb

from prebake.progress import Progress, Silent
from prebake.settings import Settings
from prebake.stop import Stop
from storage.scratch import open_scratch
from storage.store import Store
from tasks.decide import price_of
from tasks.draw import Curve, draw

REPORTS: Final = "reports"
_CURVE_POINTS: Final = 1000
_TOP: Final = 10


@dataclass(frozen=True)
class NightPage:
    """The page: ``table`` has one row per decision and reason, ``png`` the picture's bytes."""

    markdown: str
    png: bytes = field(repr=False)
    table: tuple[dict[str, Any], ...]


def report(
    store: Store,
    settings: Settings,
    plan_id: str,
    run_id: str,
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> NightPage:
    """The page of one plan and of the run that baked it, kept in the store as ``reports/<run_id>.md`` and ``.png``.

    Raises StorageError where a table cannot be read or the page not be written.
    """
    progress, stop = progress or Silent(), stop or Stop()
    stop.check()
    with progress.track("report", 1) as advance, open_scratch(settings) as connection:
        connection.register("plan_table", store.plan.scan())
        connection.register("answers_table", store.answers.scan())
        connection.register("counts", store.daily_counts.scan())
        connection.execute("set variable plan_id = $plan_id", {"plan_id": plan_id})
        connection.execute(_VIEWS_SQL)
        table = tuple(_rows(connection, _DECIDED_SQL))
        title = f"Night after {plan_id[:10]}"
        picture = draw(
            title, _curve(connection), [(row["decision"], row["reason"], row["candidates"]) for row in table]
        )
        markdown = "\n".join(_lines(connection, settings, plan_id, run_id, title, table))
        store.objects.write(f"{REPORTS}/{run_id}.png", picture)
        store.objects.write(f"{REPORTS}/{run_id}.md", f"{markdown}\n\n![What was decided]({run_id}.png)\n".encode())
        advance(1)
    return NightPage(markdown, picture, table)


_VIEWS_SQL: Final = """
    create temp table plan as select * from plan_table where plan_id = getvariable('plan_id');
    create temp view answers as select * from answers_table where plan_id = getvariable('plan_id');
"""
_DECIDED_SQL: Final = """
    select
        decision, reason, count(*) as candidates, sum(requests)::bigint as requests,
        round(sum(expected_hits), 1) as expected_hits, round(sum(value_usd), 4) as value_usd,
        round(sum(cost_usd), 4) as cost_usd
    from plan group by all order by decision, candidates desc, reason
"""
_TOTALS_SQL: Final = """
    select
        count(*) as candidates,
        count(*) filter (decision = 'bake') as bake,
        count(*) filter (decision = 'keep') as keep,
        count(*) filter (decision = 'skip') as skip,
        coalesce(sum(expected_hits) filter (decision = 'bake'), 0) as hits,
        coalesce(sum(value_usd) filter (decision = 'bake'), 0) as value_usd,
        coalesce(sum(cost_usd) filter (decision = 'bake'), 0) as cost_usd,
        coalesce(sum(gpu_s) filter (decision = 'bake'), 0) as gpu_s
    from plan
"""
_BAKED_SQL: Final = """
    select
        count(*) filter (status = 'answered') as answered, count(*) filter (status = 'truncated') as truncated,
        count(*) filter (status = 'refused') as refused, coalesce(sum(prompt_tokens), 0)::bigint as prompt_tokens,
        coalesce(sum(completion_tokens), 0)::bigint as completion_tokens
    from answers
"""
_MINED_SQL: Final = """
    select coalesce(sum(requests), 0)::bigint as requests, count(*) as fingerprints
    from counts where day = (select min(day) from plan)
"""
_TOP_SQL: Final = f"""
    select prompt, route, requests, users, expected_hits, value_usd from plan where decision = 'bake'
    order by expected_hits desc, fingerprint limit {_TOP}
"""
_REFUSED_SQL: Final = f"""
    select error, count(*) as prompts, min(prompt) as prompt from answers where status = 'refused'
    group by error order by prompts desc, error limit {_TOP}
"""
_MODELS_SQL: Final = """
    select distinct json_extract_string(request, '$.model') as model from plan where decision = 'bake' order by model
"""
# Cumulative over all candidates, those that will be served first; every nth point, and the last.
_CURVE_SQL: Final = f"""
    with ranked as (
        select
            decision <> 'skip' as served,
            row_number() over best as answers,
            sum(expected_hits) over (best rows unbounded preceding)
                / nullif(sum(expected_hits) over (), 0) as share,
            count(*) over () as total
        from plan window best as (order by decision = 'skip', expected_hits desc, fingerprint)
    )
    select answers, coalesce(share, 0) as share, served from ranked
    where answers % greatest(1, total // {_CURVE_POINTS}) = 0 or answers = total
        or answers = (select count(*) from plan where decision <> 'skip')
    order by answers
"""


def _curve(connection: duckdb.DuckDBPyConnection) -> Curve:
    rows = _rows(connection, _CURVE_SQL)
    served = [row for row in rows if row["served"]]
    return Curve(
        [row["answers"] for row in rows],
        [row["share"] for row in rows],
        served[-1]["answers"] if served else 0,
        served[-1]["share"] if served else 0.0,
    )


def _lines(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    plan_id: str,
    run_id: str,
    title: str,
    table: Sequence[dict[str, Any]],
) -> Iterable[str]:
    (mined,) = _rows(connection, _MINED_SQL)
    (planned,) = _rows(connection, _TOTALS_SQL)
    (baked,) = _rows(connection, _BAKED_SQL)
    yield f"# {title}\n"
    yield f"Plan `{plan_id}`, run `{run_id}`.\n"
    yield from _markdown_table(
        ("step", "what came of it"),
        [
            ("mined", f"{mined['requests']:,} requests of the last day, {mined['fingerprints']:,} different ones"),
            (
                "planned",
                f"{planned['candidates']:,} candidates: bake {planned['bake']:,}, keep {planned['keep']:,}, "
                f"skip {planned['skip']:,}",
            ),
            (
                "baked",
                f"{baked['answered']:,} answered, {baked['truncated']:,} cut off, {baked['refused']:,} refused; "
                f"{baked['prompt_tokens']:,} prompt and {baked['completion_tokens']:,} completion tokens",
            ),
            ("cost", f"{planned['gpu_s']:,.1f} GPU seconds planned, {planned['cost_usd']:,.4f} dollars"),
            (
                "expected",
                f"{planned['hits']:,.0f} hits while the answers are good, worth {planned['value_usd']:,.4f} dollars "
                f"online: {planned['value_usd'] - planned['cost_usd']:,.4f} saved",
            ),
        ],
    )
    models = [row["model"] for row in _rows(connection, _MODELS_SQL)]
    if unpriced := [model for model in models if price_of(model, settings) is None]:
        yield f"\nNo price in `[prices.online]` for {', '.join(unpriced)}: valued at what the night costs."
    yield "\n## Decisions\n"
    yield from _markdown_table(
        ("decision", "reason", "candidates", "requests", "expected hits"),
        [
            (row["decision"], row["reason"], *(f"{row[name]:,}" for name in ("candidates", "requests")), _hits(row))
            for row in table
        ],
    )
    if top := _rows(connection, _TOP_SQL):
        yield "\n## Most expected of what was to be baked\n"
        yield from _markdown_table(
            ("prompt", "route", "requests", "users", "expected hits"),
            [(row["prompt"], row["route"], f"{row['requests']:,}", row["users"], _hits(row)) for row in top],
        )
    if refused := _rows(connection, _REFUSED_SQL):
        yield "\n## Refused by the engine\n"
        yield from _markdown_table(
            ("why", "prompts", "for example"), [(row["error"], row["prompts"], row["prompt"]) for row in refused]
        )


def _hits(row: dict[str, Any]) -> str:
    return f"{row['expected_hits']:,.1f}"


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = connection.sql(sql).to_arrow_table().to_pylist()
    return rows


def _markdown_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterable[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|{' --- |' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(_cell(value) for value in row)} |"


def _cell(value: object, longest: int = 100) -> str:
    """Text as one table cell: one line, nothing that Markdown or HTML would read."""
    text = " ".join(str(value).split())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(f"\\{letter}" if letter in r"\|`*_[]<>#~" else letter for letter in text)
