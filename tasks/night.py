"""The night: the steps in their order, for the command line and for Prefect alike.

In: settings and the last day of log to look at. Out: a run in the ledger, a new serving snapshot, and a report.
Each step leaves a table, so a night that stopped goes on where it was when the same command runs again.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any, ParamSpec, Protocol, TypeVar

from prebake.errors import InputError, SettingsError
from prebake.progress import Progress, Silent
from prebake.settings import Settings
from prebake.stop import Stop
from storage.locks import HeldLock
from storage.store import Store, open_store
from tasks.bake import BakeReport, bake
from tasks.groups import Groups
from tasks.ingest import IngestReport, ingest
from tasks.machines import MakeMachines, bake_on_machines
from tasks.mine import MineReport, mine
from tasks.owner import owner_name
from tasks.plan import PlanReport, plan
from tasks.processes import Processes
from tasks.publish import PublishReport, publish
from tasks.report import NightPage, report

P = ParamSpec("P")
T = TypeVar("T")

LOCK_LEASE_S = 60.0
GATEWAY_LOG_FOLDER = "gateway-log"


class Redo(StrEnum):
    """What is done again although it is there: nothing, the daily counts, the answers, or both."""

    MISSING = "missing"
    COUNTS = "counts"
    ANSWERS = "answers"
    ALL = "all"

    @property
    def counts(self) -> bool:
        """Whether the days are counted again."""
        return self in (Redo.COUNTS, Redo.ALL)

    @property
    def answers(self) -> bool:
        """Whether fresh answers are baked again."""
        return self in (Redo.ANSWERS, Redo.ALL)


class StepRunner(Protocol):
    """Runs one step under its name; Prefect makes it a task of the run."""

    def __call__(self, name: str, step: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The step's own result."""
        ...


def call(_name: str, step: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """The plain way to run a step."""
    return step(*args, **kwargs)


@dataclass(frozen=True)
class NightReport:
    """What one night did; ``wall_s`` has the seconds of each step."""

    run_id: str
    day: date
    ingest: tuple[IngestReport, ...]
    mine: MineReport
    plan: PlanReport
    bake: BakeReport
    publish: PublishReport
    page: NightPage
    wall_s: dict[str, float]


def yesterday() -> date:
    """The last whole day in UTC: what a night looks at unless told otherwise."""
    return datetime.now(UTC).date() - timedelta(days=1)


def night(
    settings: Settings,
    day: date | None = None,
    *,
    routes: Sequence[str] | None = None,
    redo: Redo = Redo.MISSING,
    paths: Sequence[str] | None = None,
    wait_s: float = 0,
    run_step: StepRunner = call,
    make: MakeMachines | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> NightReport:
    """Run one night: answers for the days after ``day`` (UTC; None: yesterday) from the log up to and including it.

    ``paths`` are logs to read besides the gateway's own (None: those of the settings); ``routes`` limits the plan to
    some routes; ``make`` makes the machines where ``capacity.workers`` is prefect. Raises BusyError when another night
    holds the store for longer than ``wait_s``, Interrupted when ``stop`` was requested, and what the steps raise.
    """
    (page,) = backfill(
        settings,
        day or yesterday(),
        day or yesterday(),
        kind="nightly",
        routes=routes,
        redo=redo,
        paths=paths,
        wait_s=wait_s,
        run_step=run_step,
        make=make,
        progress=progress,
        stop=stop,
    )
    return page


def backfill(
    settings: Settings,
    start: date,
    end: date,
    *,
    kind: str = "backfill",
    routes: Sequence[str] | None = None,
    redo: Redo = Redo.MISSING,
    paths: Sequence[str] | None = None,
    wait_s: float = 0,
    run_step: StepRunner = call,
    make: MakeMachines | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> list[NightReport]:
    """Run the night of each day from ``start`` to ``end`` (both included), oldest first; arguments as for ``night``."""
    check_days(start, end)
    check_routes(settings, routes)
    progress, stop = progress or Silent(), stop or Stop()
    make = machines_of(settings, make)
    reports = []
    with open_store(settings) as store, store.ledger.lock("night", owner_name(), LOCK_LEASE_S, wait_s) as lock:
        for offset in range((end - start).days + 1):
            day = start + timedelta(days=offset)
            summary: dict[str, Any] = {}
            with store.ledger.running(kind, day, {"routes": list(routes or ()), "redo": redo}, summary) as run_id:
                steps = _Steps(store, settings, lock, run_id, day, run_step, make, progress, stop)
                reports.append(steps.all(routes, redo, settings.ingest.paths if paths is None else paths))
                summary["wall_s"] = reports[-1].wall_s
    return reports


def check_days(start: date, end: date) -> None:
    """InputError where the range is empty, or reaches days that are not over."""
    if end < start:
        raise InputError(f"end {end} lies before start {start}; give the earlier day first")
    if end > datetime.now(UTC).date():
        raise InputError(f"end {end} lies in the future; the log ends today, {datetime.now(UTC).date()} (UTC)")


def check_routes(settings: Settings, routes: Sequence[str] | None) -> None:
    """InputError where a name is no route of the settings."""
    known = [route.name for route in settings.routes]
    for name in routes or ():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise InputError(f"no route is called {name!r}{hint}; the settings have: {', '.join(known)}")


def machines_of(settings: Settings, make: MakeMachines | None = None) -> MakeMachines | None:
    """Where the settings want the bake: on what machines, or None for the night's own process.

    ``make`` is what Prefect's flows give. Raises SettingsError where the settings lack something.
    """
    match settings.capacity.workers:
        case "":
            return None
        case "processes":
            return Processes
        case "groups":
            return Groups.checked(settings)
        case "prefect":
            if make is None:
                raise SettingsError(
                    "capacity.workers = prefect: such a night runs in Prefect (prebake prefect, then its deployment "
                    "nightly); from the command line set PREBAKE_CAPACITY__WORKERS=processes"
                )
            return make


class _Steps:
    """One night's steps on one store, timed."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        lock: HeldLock,
        run_id: str,
        day: date,
        run_step: StepRunner,
        make: MakeMachines | None,
        progress: Progress,
        stop: Stop,
    ) -> None:
        self._store, self._settings, self._lock = store, settings, lock
        self._run_id, self._day = run_id, day
        self._run_step, self._make, self._progress, self._stop = run_step, make, progress, stop
        self._wall_s: dict[str, float] = {}

    def all(self, routes: Sequence[str] | None, redo: Redo, paths: Sequence[str]) -> NightReport:
        now = datetime.now(UTC)
        ingested = tuple(self._ingest(paths))
        mined = self._step("mine", mine, days=[self._day] if redo.counts else None)
        planned = self._step("plan", plan, self._day, now=now, routes=routes, redo=redo.answers)
        baked = self._bake(planned.plan_id, now)
        published = self._step("publish", publish, run_id=self._run_id, now=datetime.now(UTC))
        page = self._step("report", report, planned.plan_id, self._run_id)
        return NightReport(
            self._run_id, self._day, ingested, mined, planned, baked, published, page, dict(self._wall_s)
        )

    def _bake(self, plan_id: str, started: datetime) -> BakeReport:
        if self._make is None:
            return self._step("bake", bake, plan_id, run_id=self._run_id, owner=owner_name())
        ready_h = self._settings.capacity.ready_h
        ready_at = None if ready_h is None else started + timedelta(hours=ready_h)
        return self._step("bake", bake_on_machines, plan_id, run_id=self._run_id, make=self._make, ready_at=ready_at)

    def _ingest(self, paths: Sequence[str]) -> Iterator[IngestReport]:
        if paths:
            yield self._step("ingest", ingest, paths)
        if any(True for _ in self._store.objects.list(GATEWAY_LOG_FOLDER + "/")):
            folder = f"{self._store.objects.uri}/{GATEWAY_LOG_FOLDER}"
            yield self._step("ingest", ingest, [folder], preset="prebake")

    def _step(self, name: str, step: Callable[..., T], *args: object, **kwargs: object) -> T:
        self._stop.check()
        self._lock.check()
        started = time.monotonic()
        try:
            return self._run_step(
                name,
                step,
                self._store,
                self._settings,
                *args,
                progress=self._progress,
                stop=self._stop,
                **kwargs,
            )
        finally:
            self._wall_s[name] = round(self._wall_s.get(name, 0) + time.monotonic() - started, 3)
