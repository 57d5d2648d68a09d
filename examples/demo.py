"""The demo: one night and one day, on the example or on a log of your own.

In: a query log (simulated unless one is given). Out: a served store, a table on the screen, figures in summary.json.
The night looks at every day but the last; the last day is replayed through the gateway with OpenAI's client.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from examples.make_log import END_DAY, make_log
from examples.replay import CONCURRENCY, Asked, Tally, read_held_back, replay
from examples.servers import gateway, online_model
from prebake.cli.output import complain
from prebake.errors import InputError, PrebakeError
from prebake.loading import load
from prebake.progress import Bars
from prebake.request import Keyed, key_request
from prebake.settings import Settings
from prebake.stop import Stop, stop_on_signals
from storage.catalog import connect
from storage.store import open_store
from tasks.ingest import ingest
from tasks.night import NightReport, night

HERE = Path(__file__).parent
# A log of one's own fits none of the example's routes: one route takes it all, each tenant's answers for that tenant.
PLAIN_ROUTE = '[{"name": "default", "fold": "text"}]'


@dataclass
class Demo:
    """What the steps share."""

    settings: Settings
    settings_file: Path
    folder: Path
    stop: Stop
    progress: Bars = field(default_factory=Bars)
    wall_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long the step takes; stop before it if somebody asked to."""
        self.stop.check()
        started = time.monotonic()
        yield
        self.wall_s[step] = round(time.monotonic() - started, 3)


def main(
    log: Annotated[list[str] | None, typer.Option(help="Your log instead of the example's; may repeat.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hugging Face name, for the night and online.")] = None,
    store: Annotated[str | None, typer.Option(help="Folder or s3://bucket/prefix of the store.")] = None,
    settings: Annotated[Path | None, typer.Option(help="Your prebake.toml instead of the example's.")] = None,
    upstream: Annotated[str, typer.Option(help="Address of a running model, with /v1; else vLLM is started.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for the log, the store and summary.json.")] = Path("demo"),
) -> None:
    """One night and one day: mine a log, bake what will come back, serve it, replay the log's last day against it."""
    out.mkdir(parents=True, exist_ok=True)
    _override("PREBAKE_ENGINE__MODEL", model and (str(Path(model).resolve()) if Path(model).is_dir() else model))
    _override("PREBAKE_STORE__ROOT", store if store or settings else str(out.resolve() / "store"))
    _override("PREBAKE_INGEST__PATHS", json.dumps(log or [str(out.resolve() / "log" / "*.jsonl.zst")]))
    _override("PREBAKE_ROUTES", PLAIN_ROUTE if log and not settings else None)
    file = settings or HERE / "prebake.toml"
    with stop_on_signals() as stop:
        summary = _run(Demo(load(file), file, out, stop), log, upstream)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _print(summary, out)


def _override(variable: str, value: str | None) -> None:
    """Settings from the command line go by the environment, so that the gateway's process sees them too."""
    if value:
        os.environ[variable] = value


def _run(demo: Demo, log: Sequence[str] | None, upstream: str) -> dict[str, Any]:
    with ExitStack() as servers:
        if log is None:
            day, asked = _example_log(demo)
        else:
            day, asked = _own_log(demo, log)
        if not asked:
            raise InputError(f"the log has no requests on {day + timedelta(days=1)}, the day to replay")
        if not upstream:
            # It takes a while to start: it does so while the night runs.
            names = sorted({request.body["model"] for request in asked})
            online = servers.enter_context(online_model(demo.settings, names, demo.folder))
        report = night(demo.settings, day, paths=None if log is None else (), progress=demo.progress, stop=demo.stop)
        demo.wall_s |= report.wall_s
        ceiling = _ceiling(demo.settings, day, asked)
        if not upstream:
            with demo.timed("online model"):
                online.wait_until_up()
        with demo.timed("replay"), demo.progress.track("replay the last day", len(asked)) as advance:
            front = servers.enter_context(
                gateway(demo.settings_file, demo.settings.store.root, upstream or online.url, demo.folder)
            )
            tally = replay(front.url, asked, demo.settings, advance)
    return _summary(demo, report, tally, ceiling)


def _example_log(demo: Demo) -> tuple[date, list[Asked]]:
    held_back = demo.folder / "held-back.jsonl.zst"
    with demo.timed("log"):
        # The held-back day is written last: where it is, the log is whole.
        if not held_back.exists():
            make_log(demo.folder)
    return END_DAY - timedelta(days=1), list(read_held_back(held_back))


def _own_log(demo: Demo, log: Sequence[str]) -> tuple[date, list[Asked]]:
    """Read the whole log; the plan will look only at the days before its last one."""
    with demo.timed("log"), open_store(demo.settings) as store:
        ingest(store, demo.settings, log, progress=demo.progress, stop=demo.stop)
        with connect(store) as connection:
            (last,) = connection.execute("select max(day) from query_log where cache is null").fetchone() or (None,)
            if last is None:
                raise InputError(f"no request could be read from {', '.join(log)}; see: prebake sql 'from rejects'")
            rows = connection.execute(
                "select request, tenant from query_log where day = ? and cache is null and request is not null", [last]
            ).fetchall()
    asked = []
    for request, tenant in rows:
        body = orjson.loads(request)
        asked.append(Asked({"model": body["model"], "messages": body["messages"], **body["params"]}, tenant))
    return last - timedelta(days=1), asked


def _ceiling(settings: Settings, day: date, asked: Sequence[Asked]) -> float:
    """The share of the requests whose fingerprint was asked in the window: no exact store can hit more."""
    with open_store(settings) as store, connect(store) as connection:
        rows = connection.execute(
            "select distinct fingerprint from query_log where day between ? and ? and fingerprint is not null",
            [day - timedelta(days=settings.mine.window_days - 1), day],
        ).fetchall()
    seen = {row[0] for row in rows}
    keys = [key_request(request.body, settings.route_table, request.tenant) for request in asked]
    return sum(isinstance(key, Keyed) and key.fingerprint.hex() in seen for key in keys) / len(asked)


def _summary(demo: Demo, report: NightReport, tally: Tally, ceiling: float) -> dict[str, Any]:
    return {
        "requests": tally.requests,
        "hits": tally.hits,
        "hit_rate": round(tally.hits / tally.requests, 4),
        "ceiling_hit_rate": round(ceiling, 4),
        "misses": tally.misses,
        "bypasses": tally.bypasses,
        "errors": tally.errors,
        "first_error": tally.first_error,
        "tokens_saved": tally.tokens_saved,
        "usd_saved": round(tally.usd_saved, 6),
        "baked": report.bake.answers,
        "bake_usd": round(report.bake.gpu_usd, 6),
        "hit_p50_ms": _p50_ms(tally.hit_s),
        "miss_p50_ms": _p50_ms(tally.miss_s),
        "day": str(report.day),
        "store": demo.settings.store.root,
        "settings": str(demo.settings_file),
        "wall_s": demo.wall_s,
    }


def _p50_ms(seconds: Sequence[float]) -> float | None:
    return round(statistics.median(seconds) * 1000, 2) if seconds else None


def _print(summary: dict[str, Any], out: Path) -> None:
    table = Table(title=f"The day after the night of {summary['day']}", title_justify="left", show_header=False)
    requests = summary["requests"]
    table.add_row("requests", f"{requests:,}")
    table.add_row("answered from the store", f"{summary['hits']:,}  ({summary['hit_rate']:.1%})")
    table.add_row("highest share any exact store could answer", f"{summary['ceiling_hit_rate']:.1%}")
    table.add_row("sent to the model: misses, bypasses", f"{summary['misses']:,}, {summary['bypasses']:,}")
    if summary["errors"]:
        table.add_row("failed", f"{summary['errors']:,}, the first by {summary['first_error']}")
    table.add_row("tokens saved", f"{summary['tokens_saved']:,}")
    table.add_row("saved online, spent on the night", f"${summary['usd_saved']:.4f}, ${summary['bake_usd']:.4f}")
    table.add_row("half of the hits, one at a time, within", f"{summary['hit_p50_ms']} ms")
    table.add_row(f"half of the rest, {CONCURRENCY} at a time, within", f"{summary['miss_p50_ms']} ms")
    table.add_row("answers baked this time", f"{summary['baked']:,}")
    table.add_row("seconds by step", ", ".join(f"{step} {seconds:.1f}" for step, seconds in summary["wall_s"].items()))
    console = Console()
    console.print(table)
    query = "select prompt, expected_hits, decision, reason from plan order by expected_hits desc limit 10"
    console.print(f"store: {summary['store']}\nfigures: {out / 'summary.json'}\nlook into the store:", highlight=False)
    console.print(f'  .venv/bin/prebake -s {summary["settings"]} sql "{query}"', highlight=False, soft_wrap=True)


if __name__ == "__main__":
    try:
        typer.run(main)
    except PrebakeError as error:
        complain(error)
        raise SystemExit(error.exit_code) from None
