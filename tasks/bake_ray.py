"""Bakes on a Ray cluster: Ray Data places the workers, restarts them and grows the cluster; the rest is ``bake``'s.

Each worker is a stateful actor under ``map_batches`` that takes shards from the ledger and commits to the store, so a
node that goes away costs its leases and nothing else. No answer travels through Ray's object store, only reports.
Driver and nodes need this prebake, the model and the store alike; the settings travel with the job.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
import ray
import ray.data
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prebake.errors import EngineError, Interrupted, PrebakeError, SettingsError, StorageError
from prebake.progress import Progress, Silent
from prebake.settings import Settings
from prebake.stop import Stop
from storage import ARROW_ALLOCATOR
from storage.store import Store, open_store
from tasks.bake import BakeReport, bake
from tasks.gpus import gpus_per_engine
from tasks.owner import owner_name
from tasks.plan_watch import PlanWatch

LOCAL: Final = "local"
LOOK_S: Final = 1.0
# Ray Data adds an actor when each of those it has is given two pieces of work, so there is one to do and one to wait.
_SLOTS: Final = 2
_ASK_S: Final = 10.0

Job = tuple[Settings, str, str]
"""Settings, plan, run."""
Outcome = PrebakeError | None
"""How an actor ended: the error must reach the driver whole."""

_logger = logging.getLogger(__name__)


@contextmanager
def ray_cluster(address: str, **options: Any) -> Iterator[None]:
    """Connected to the cluster at that address for as long as the block lasts; ``local``: one on this machine alone.

    ``options`` are ``ray.init``'s. Raises SettingsError if it cannot be reached or started.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL:
        options = {"include_dashboard": False} | options
    # Ray's workers have Arrow loaded before they see anything of ours.
    workers = {"env_vars": ARROW_ALLOCATOR}
    try:
        ray.init(address, runtime_env=workers, log_to_driver=False, logging_level=logging.WARNING, **options)
    except (OSError, ValueError, RuntimeError) as error:  # no connection, or no folder for a cluster of one's own
        raise SettingsError(
            f"Ray at {address!r}: cannot be used: {' '.join(str(error).split())[:300]}; give the address of a "
            f"running cluster, auto, or {LOCAL}"
        ) from None
    try:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray's own would end the driver before its workers have drained
                signal.signal(number, handler)
        yield
    finally:
        ray.shutdown()


def bake_on_ray(
    store: Store,
    settings: Settings,
    plan_id: str,
    *,
    run_id: str,
    workers: int = 1,
    gpus: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> BakeReport:
    """Bake the plan on the cluster that is connected, with up to so many workers.

    ``gpus``: of each worker; None: as its engine's arguments say; 0: none, and one CPU instead. Returns when the plan
    is done or the budget spent; waits for as long as the cluster has no room. A stop drains the workers. Raises what
    ``bake`` raises, EngineError if Ray itself fails.
    """
    gpus = gpus_per_engine(settings.engine) if gpus is None else gpus
    _check_cluster(settings, gpus)
    progress, stop = progress or Silent(), stop or Stop()
    # On the driver's machine, which must outlast the workers' anyway.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    flag = ray.remote(num_cpus=0, scheduling_strategy=here)(_Flag).remote()
    watch = PlanWatch(store, settings, plan_id)
    with progress.watch(watch.pulse), _watching(stop, flag, watch):
        try:
            errors = _errors((settings, plan_id, run_id), flag, workers, gpus)
        except RayTaskError:
            raise  # a bug of ours: what is foreseen comes back as an error
        except RayError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise EngineError(f"Ray: the bake failed: {reason[:500]}; run it again to go on") from error
    stop.check()
    report = watch.report()
    for met in errors:
        if not watch.done and not report.unpaid:
            raise met
        _logger.warning("a bake worker gave up, and others did its work: %s", met)
    return report


class _Flag:
    """The driver's stop, where every worker can read it: an actor of its own."""

    def __init__(self) -> None:
        self._reason = ""

    def put(self, reason: str) -> None:
        self._reason = reason

    def get(self) -> str:
        return self._reason


class _BakeWorker:
    """The actor. Its first call bakes until the plan is done; the others are there so that Ray Data adds actors."""

    def __init__(self, job: Job, flag: Any) -> None:
        self._job = job
        self._flag = flag
        self._through = False

    def __call__(self, slots: dict[str, Any]) -> dict[str, Any]:
        """The error that the actor met, if any; nothing for further slots."""
        outcome = None if self._through else self._bake()
        self._through = True
        return {"slot": slots["item"], "outcome": np.array([pickle.dumps(outcome)], dtype=object)}

    def _bake(self) -> Outcome:
        stop, over = Stop(), threading.Event()
        listener = threading.Thread(target=self._listen, args=(stop, over), daemon=True)
        listener.start()
        outcome = _bake_until_done(*self._job, stop)
        over.set()
        listener.join()
        if isinstance(outcome, Interrupted) and not self._told_to_stop():
            os._exit(1)  # this machine's own notice, and all is kept: Ray starts the actor again, elsewhere if it can
        return outcome

    def _listen(self, stop: Stop, over: threading.Event) -> None:
        while not over.wait(LOOK_S):
            if reason := self._told_to_stop():
                stop.request(reason)

    def _told_to_stop(self) -> str:
        try:
            return str(ray.get(self._flag.get.remote(), timeout=_ASK_S))
        except ActorDiedError:
            return "the driver is gone"
        except RayError:
            return ""  # out of reach for the moment


def _bake_until_done(settings: Settings, plan_id: str, run_id: str, stop: Stop) -> Outcome:
    try:
        with open_store(settings) as store:
            bake(store, settings, plan_id, run_id=run_id, owner=owner_name(), stop=stop)
    except PrebakeError as error:
        return error
    return None


def _errors(job: Job, flag: Any, workers: int, gpus: int) -> list[PrebakeError]:
    shown = ray.data.DataContext.get_current()
    shown.enable_progress_bars = shown.print_on_execution_start = False  # our own bar counts answers
    slots = ray.data.from_items(list(range(_SLOTS * workers)), override_num_blocks=_SLOTS * workers)
    baked = slots.map_batches(
        _BakeWorker,
        batch_size=1,
        fn_constructor_args=(job, flag),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, max_tasks_in_flight_per_actor=_SLOTS),
        # Restarts have no limit, as Ray Data has it: a spot machine that goes away is no failure.
        **({"num_gpus": gpus} if gpus else {"num_cpus": 1}),
    )
    outcomes: list[Outcome] = [pickle.loads(row["outcome"]) for row in baked.take_all()]
    return [error for error in outcomes if error is not None]


@contextmanager
def _watching(stop: Stop, flag: Any, plan: PlanWatch) -> Iterator[None]:
    """Beside the block: the ledger is looked at, and a stop is told to the workers."""
    over = threading.Event()

    def watch() -> None:
        told = False
        while not over.wait(LOOK_S):
            if stop.requested and not told:
                flag.put.remote(stop.reason)
                told = True
            with suppress(StorageError):  # the figures stand still while the ledger is away
                plan.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _check_cluster(settings: Settings, gpus: int) -> None:
    machines = sum(bool(node["Alive"]) for node in ray.nodes())
    if machines > 1 and (settings.store.ledger_url or "sqlite").startswith("sqlite"):
        raise SettingsError(
            f"store.ledger_url: a Ray cluster of {machines} machines cannot share SQLite; set it to "
            "postgresql+psycopg://user:password@host/database"
        )
    there = ray.cluster_resources().get("GPU", 0)
    if gpus > there:
        _logger.warning(
            "a worker needs %s GPUs and the Ray cluster has %g now: waiting for it to grow (--gpus 0 bakes on CPUs)",
            gpus,
            there,
        )
