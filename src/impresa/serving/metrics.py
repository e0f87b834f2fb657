"""Counters and gauges of `/metrics`, for Prometheus."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Where the workers of a server put their numbers; the library reads this variable when it is imported."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts of a process, which `text` adds up with those of its fellows."""

    def __init__(self) -> None:
        own = self._own = CollectorRegistry()
        self.requests = Counter(
            "impresa_requests_total", "Answers by route and status", ("route", "status"), registry=own
        )
        told = "From a request's head to its answer"
        self.seconds = Histogram("impresa_request_seconds", told, ("route",), buckets=_SECONDS, registry=own)
        self.now = Gauge("impresa_requests_now", "Requests at once", multiprocess_mode="livesum", registry=own)
        told = "Inputs that wait or are computed"
        self.waiting = Gauge("impresa_waiting_inputs", told, multiprocess_mode="livesum", registry=own)
        told = "Inputs of a batch"
        self.batches = Histogram("impresa_batch_inputs", told, ("modality",), buckets=_SIZES, registry=own)
        self.tokens = Counter("impresa_tokens_total", "Tokens read and written", ("kind",), registry=own)

    def text(self) -> bytes:
        """All counts in Prometheus's format."""
        if SHARED not in os.environ:
            return generate_latest(self._own)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)
