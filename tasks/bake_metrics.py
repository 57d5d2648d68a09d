"""The pulse of a bake for Prometheus: each scrape is one look. Out: ``/metrics`` for as long as the bake runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from prebake.pulse import Look, Pulse
from prebake.settings import Engine as EngineSettings

_PREFIX: Final = "prebake_bake_"
_FAMILIES: Final[dict[str, type[CounterMetricFamily | GaugeMetricFamily]]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
}

Samples = dict[tuple[str, ...], float | None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BakeMetric:
    """One metric: ``read`` gives its samples by the values of its labels; None: no sample."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    read: Callable[[Pulse], Samples]
    labels: tuple[str, ...] = ()

    def family(self, pulse: Pulse) -> CounterMetricFamily | GaugeMetricFamily:
        """The metric as it stands."""
        family = _FAMILIES[self.kind](_PREFIX + self.name, self.meaning, labels=self.labels)
        for values, sample in self.read(pulse).items():
            if sample is not None:
                family.add_metric(values, sample)
        return family


def _one(read: Callable[[Pulse], float | None]) -> Callable[[Pulse], Samples]:
    return lambda pulse: {(): read(pulse)}


METRICS: Final = (
    BakeMetric(
        "info", "gauge", "1; which plan this process bakes, in which run and as whom",
        lambda p: {(p.plan_id, p.run_id, p.owner): 1}, ("plan_id", "run_id", "owner"),
    ),
    BakeMetric(
        "answers", "counter", "Prompts that came back from the engine, by status",
        lambda p: {("answered",): p.answered, ("truncated",): p.truncated, ("refused",): p.refused}, ("status",),
    ),
    BakeMetric(
        "tokens", "counter", "Tokens of those prompts and answers, by kind",
        lambda p: {("prompt",): p.prompt_tokens, ("completion",): p.completion_tokens}, ("kind",),
    ),
    BakeMetric(
        "resumed_tokens", "counter", "Completion tokens that an interrupted bake had generated and this one did not",
        _one(lambda p: p.resumed_tokens),
    ),
    BakeMetric(
        "restarted_answers", "counter", "Answers begun before a stop that had to start again",
        _one(lambda p: p.restarted),
    ),
    BakeMetric(
        "tokens_per_second", "gauge", "Completion tokens per second over the last minute",
        _one(lambda p: p.tokens_per_s),
    ),
    BakeMetric("in_flight", "gauge", "Prompts inside the engine", _one(lambda p: p.in_flight)),
    BakeMetric("capacity", "gauge", "Prompts worth having inside the engine", _one(lambda p: p.capacity)),
    BakeMetric(
        "engine_restarts", "counter", "Times the engine died and was started anew", _one(lambda p: p.engine_restarts)
    ),
    BakeMetric("flushes", "counter", "Times finished answers became durable", _one(lambda p: p.flushes)),
    BakeMetric("parts", "counter", "Parts written and counted by the ledger", _one(lambda p: p.parts)),
    BakeMetric(
        "unflushed_answers", "gauge", "Finished answers that a kill would lose now", _one(lambda p: p.unflushed)
    ),
    BakeMetric(
        "flush_age_seconds", "gauge", "Time since answers last became durable, or since the bake began",
        _one(lambda p: p.flush_age_s),
    ),
    BakeMetric("leases", "gauge", "Shards this worker holds", _one(lambda p: p.leases)),
    BakeMetric(
        "leases_lost", "counter", "Shards another worker took over from this one", _one(lambda p: p.leases_lost)
    ),
    BakeMetric(
        "plan_shards", "gauge", "The plan's shards, by status",
        lambda p: {("pending",): p.shards_pending, ("leased",): p.shards_leased, ("done",): p.shards_done},
        ("status",),
    ),
    BakeMetric("plan_answers", "gauge", "Answers planned", _one(lambda p: p.planned)),
    BakeMetric(
        "plan_answers_done", "gauge", "Answers of the plan that are done, by all workers", _one(lambda p: p.answers)
    ),
    BakeMetric(
        "left_seconds", "gauge", "Time left until the plan is done, at the pace of the last minute",
        _one(lambda p: p.seconds_left),
    ),
    BakeMetric("seconds", "counter", "Time since this worker's bake began", _one(lambda p: p.seconds)),
    BakeMetric("spent_dollars", "counter", "GPU price times that time", _one(lambda p: p.usd)),
    BakeMetric("budget_dollars", "gauge", "The budget; absent where there is none", _one(lambda p: p.budget_usd)),
    BakeMetric(
        "preemption_notices", "counter", "Notices of the cloud that this machine will be taken",
        _one(lambda p: p.notices),
    ),
)  # fmt: skip


class BakeCollector(Collector):
    """All metrics of one bake."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """Every metric from one look, so that they belong together."""
        pulse = self._look()
        for metric in METRICS:
            yield metric.family(pulse)


@contextmanager
def serve_metrics(settings: EngineSettings, look: Look) -> Iterator[None]:
    """Serve the metrics for as long as the block lasts, where the settings name a port.

    A port that cannot be had is logged and no more: a night does not fail for being unwatched.
    """
    if not settings.metrics_port:
        yield
        return
    registry = CollectorRegistry()
    registry.register(BakeCollector(look))
    host, port = settings.metrics_host, settings.metrics_port
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        logger.warning(
            "engine.metrics_port: cannot listen on %s:%d: %s; the bake goes on without metrics, choose another port",
            host, port, error.strerror or error,
        )  # fmt: skip
        yield
        return
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
