"""What the gateway counts, for Prometheus. With several worker processes prometheus-client sums over their files."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from prebake.answer import Answer

HIT_BUCKETS_S = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3)
UPSTREAM_BUCKETS_S = (1e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """All metrics of one process. Names and meanings are what ``/metrics`` shows; times are seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "prebake_requests", "Chat requests by what the gateway did and why", "route", "cache", "reason"
        )
        self.refused = self._counter(
            "prebake_refused", "Requests refused at the door: keys, rates, sizes, time", "reason"
        )
        self.saved_tokens = self._counter("prebake_saved_tokens", "Tokens the upstream did not process", "kind")
        self.hit_seconds = _Histogram(
            "prebake_hit_seconds", "From the whole request to the whole answer", (), buckets=HIT_BUCKETS_S,
            registry=self.registry,
        )  # fmt: skip
        self.upstream_seconds = Histogram(
            "prebake_upstream_seconds", "Until the upstream's status line", (), buckets=UPSTREAM_BUCKETS_S,
            registry=self.registry,
        )  # fmt: skip
        self.upstream_errors = self._counter("prebake_upstream_errors", "Upstream calls that failed", "kind")
        self.upstream_answer_seconds = Histogram(
            "prebake_upstream_answer_seconds", "Until the end of the upstream's answer", (), buckets=UPSTREAM_BUCKETS_S,
            registry=self.registry,
        )  # fmt: skip
        self.sent_bytes = self._counter(
            "prebake_sent_bytes", "Bytes of answers, from the store or the upstream", "source"
        )
        self.client_disconnects = self._counter("prebake_client_disconnects", "Upstream calls the client gave up")
        self.log_rows = self._counter("prebake_log_rows", "Request log rows written")
        self.log_dropped = self._counter("prebake_log_dropped", "Request log rows dropped because the queue was full")
        self.access_log_dropped = self._counter(
            "prebake_access_log_dropped", "Access log lines dropped because nobody read them fast enough"
        )
        self.near_misses = self._counter(
            "prebake_near_misses", "Misses compared with the baked questions, by what was found", "route", "found"
        )
        self.near_dropped = self._counter(
            "prebake_near_dropped", "Misses not compared or not written because the queue was full"
        )
        self.reloads = self._counter("prebake_snapshot_reloads", "Snapshots looked at for serving", "result")
        self.snapshot_answers = self._gauge("prebake_snapshot_answers", "Answers in the snapshot served")
        self.snapshot_bytes = self._gauge("prebake_snapshot_bytes", "Size of the snapshot served")
        self.snapshot_created = self._gauge("prebake_snapshot_created_seconds", "When it was published, Unix time")
        self.snapshot_info = self._gauge(
            "prebake_snapshot_info", "1 for the snapshot served, 0 for those before", "version"
        )

        self.hits = Hits(self)

    def text(self) -> bytes:
        """All metrics of all workers in Prometheus' text format."""
        self.hits.hand_over()
        if MULTIPROCESS_DIR not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, registry=self.registry, multiprocess_mode="livemostrecent")


class _Histogram(Histogram):
    def observe_many(self, counts: list[int], total: float) -> None:
        """Observations that were counted elsewhere, by the bucket that each falls in, and their sum."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class Hits:
    """What hits count, in plain numbers, because prometheus-client's counters cost more than a lookup.

    They are handed over when the metrics are shown, by a clock (for other workers to show), and at the end. One thread
    uses it.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.requests
        self._seconds = metrics.hit_seconds
        self._prompt = metrics.saved_tokens.labels("prompt")
        self._completion = metrics.saved_tokens.labels("completion")
        self._sent = metrics.sent_bytes.labels("store")
        self._clear()

    def count(self, route: str, cache: str, answer: Answer, sent_bytes: int, seconds: float) -> None:
        """Count one."""
        self._counts[route, cache] += 1
        self._prompt_tokens += answer.prompt_tokens
        self._completion_tokens += answer.completion_tokens
        self._bytes += sent_bytes
        self._buckets[bisect_left(HIT_BUCKETS_S, seconds)] += 1
        self._total_s += seconds

    def hand_over(self) -> None:
        """Add what was counted since the last time to the metrics."""
        if not self._counts:
            return
        for (route, cache), count in self._counts.items():
            self._requests.labels(route, cache, "").inc(count)
        self._prompt.inc(self._prompt_tokens)
        self._completion.inc(self._completion_tokens)
        self._sent.inc(self._bytes)
        self._seconds.observe_many(self._buckets, self._total_s)
        self._clear()

    def _clear(self) -> None:
        self._counts: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._prompt_tokens = self._completion_tokens = self._bytes = 0
        self._buckets = [0] * (len(HIT_BUCKETS_S) + 1)
        self._total_s = 0.0
