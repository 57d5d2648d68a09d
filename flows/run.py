"""One run of prebake inside Prefect: steps become tasks, their logs show in the run, a cancel drains it.

The ledger says what is done, Prefect only shows it: no result is cached or kept, so that running again goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, cast

from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.artifacts import BakeProgress, show_page, top_of_plan
from prebake.errors import BusyError, Interrupted, PrebakeError, StorageError
from prebake.loading import load
from prebake.settings import Settings
from prebake.stop import Stop, stop_on_signals
from tasks.night import NightReport
from tasks.report import NightPage

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[[Settings, BakeProgress, Stop], Sequence[NightReport]]

_PACKAGES: Final = ("tasks", "capacity", "storage", "engine", "prebake", "flows")
_RETRY_DELAYS_S: Final = (2.0, 10.0)  # a cancel must be answered within 25 s: no longer pause than this
_BUSY_POLL_S: Final = 15.0


def last_full_day() -> date:
    """The last whole UTC day before the run was due; a run that started late still does its own night."""
    due: datetime = flow_run.scheduled_start_time
    return due.astimezone(UTC).date() - timedelta(days=1)


def run_name(kind: str, days: str) -> str:
    """The run's name: what it is, its days, and its routes where it does not do all."""
    routes = flow_run.parameters.get("routes") or ()
    return " ".join((kind, days, *(str(route) for route in routes)))


def run(settings_file: str, wait_minutes: int, work: Work) -> State[Any]:
    """Do the work and say how it ended: Completed, Cancelled after a drain, or Failed with one clear sentence.

    Anything but a PrebakeError is a bug and is raised.
    """
    progress = BakeProgress()
    with stop_on_signals() as stop, logs_in_run():
        try:
            settings = load(Path(settings_file) if settings_file else None)
            reports = _when_free(lambda: work(settings, progress, stop), wait_minutes * 60, stop)
        except Interrupted:
            return Cancelled(message=_drained(progress))
        except PrebakeError as error:
            return Failed(message=str(error))
    return Completed(message=", ".join(f"{report.day}: {report.bake.answers:,} answers baked" for report in reports))


def run_step(name: str, step: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run one step as a Prefect task; the store's troubles are tried again, except in the bake, which leases guard."""
    errors: list[PrebakeError] = []

    def attempt() -> T | State[T]:
        try:
            return step(*args, **kwargs)
        except PrebakeError as error:
            errors.append(error)
            return Cancelled(message=str(error)) if isinstance(error, Interrupted) else Failed(message=str(error))

    def worth_retrying(_task: Task[..., Any], _run: TaskRun, _state: State[Any]) -> bool:
        return bool(errors) and isinstance(errors[-1], StorageError)

    prefect_task = Task(
        attempt,
        name=name,
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=0 if name == "bake" else len(_RETRY_DELAYS_S),
        retry_delay_seconds=list(_RETRY_DELAYS_S),
        retry_condition_fn=worth_retrying,
    )
    state = prefect_task(return_state=True)
    if errors and not state.is_completed():
        raise errors[-1]
    result = cast(T, state.result())
    if isinstance(result, NightPage):
        store, _settings, plan_id = args[:3]
        show_page(result, top_of_plan(cast(Any, store), cast(str, plan_id)))
    return result


def _when_free(work: Callable[[], T], wait_s: float, stop: Stop) -> T:
    """Do the work as soon as no other night holds the store. Raises BusyError after ``wait_s``."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return work()
        except BusyError as busy:
            if time.monotonic() >= deadline:
                raise
            get_run_logger().info("waiting: %s", busy)
            stop.wait(_BUSY_POLL_S)
            stop.check()


def _drained(progress: BakeProgress) -> str:
    baked = f" after {progress.last.answers:,} of {progress.last.planned:,} answers" if progress.last else ""
    return f"drained{baked}; what was finished is kept, run it again to go on"


@contextmanager
def logs_in_run() -> Iterator[None]:
    """Send what prebake logs, from whatever thread, to this run's page."""
    run_id = flow_run.id
    handler = APILogHandler()

    def name_the_run(record: logging.LogRecord) -> bool:
        record.flow_run_id = run_id
        return True

    handler.addFilter(name_the_run)
    loggers = [logging.getLogger(name) for name in _PACKAGES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
