"""What a server counts, for Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LOG = logging.getLogger(__package__)

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
NONE = ""
"""In the place of an adapter's name: of the bare base, of a request that named none that there is."""


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        named: Any = {"namespace": "mlx_peft", "registry": self._registry}
        self._requests = Counter("requests", "Requests, by what they asked for.", ("route", "status"), **named)
        self._images = Counter("images", "Images that were answered.", ("route", "adapter"), **named)
        self._latency = Histogram(
            "request_seconds", "From a request's first byte to its answer.", ("route", "adapter"), buckets=SECONDS,
            **named,
        )  # fmt: skip
        self._errors = Counter("errors", "Requests that got no answer, by their status.", ("route", "status"), **named)
        self._batches = Histogram("batch_images", "Images of a batch.", buckets=IMAGES, **named)
        self._device = Histogram("batch_seconds", "That the device takes for a batch.", buckets=SECONDS, **named)
        self._failures = Counter("device_errors", "Batches that the device could not answer.", **named)
        self._loads = Counter("adapter_loads", "Adapters that were loaded or let go.", ("adapter", "action"), **named)
        self._waiting = Gauge("waiting_images", "Images that were taken in and are not yet answered.", **named)
        self._loaded = Gauge("adapters_loaded", "Adapters in memory.", **named)
        self._served = Gauge("adapters_served", "Adapters that can be asked.", **named)
        self._ready = Gauge("ready", "Whether it is warm and takes requests in.", **named)

    def watch(
        self,
        waiting: Callable[[], int],
        loaded: Callable[[], int],
        served: Callable[[], int],
        ready: Callable[[], bool],
    ) -> None:
        """Who is asked for the gauges."""
        self._waiting.set_function(waiting)
        self._loaded.set_function(loaded)
        self._served.set_function(served)
        self._ready.set_function(ready)

    def batch(self, images: int, seconds: float) -> None:
        self._batches.observe(images)
        self._device.observe(seconds)

    def failed(self, error: Exception) -> None:
        self._failures.inc()
        LOG.error("the device could not answer a batch", exc_info=error)

    def answered(self, route: str, adapters: dict[str | None, int], seconds: float) -> None:
        """A request's images got their answers: so many of each adapter."""
        self._requests.labels(route, "200").inc()
        for adapter, count in adapters.items():
            self._images.labels(route, adapter or NONE).inc(count)
            self._latency.labels(route, adapter or NONE).observe(seconds)

    def refused(self, route: str, status: int) -> None:
        """A request got none."""
        self._requests.labels(route, str(status)).inc()
        self._errors.labels(route, str(status)).inc()

    def loaded(self, adapter: str, action: str) -> None:
        self._loads.labels(adapter, action).inc()

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)
