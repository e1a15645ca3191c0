"""What is counted for Prometheus: requests, images, batches; no name, no address, no content."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Counts:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "scanprior_requests", "Requests answered", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "scanprior_request_seconds",
            "Time from the head of a request to its answer",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "scanprior_images",
            "Images answered, by result",
            ("model", "result"),
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "scanprior_batch_size",
            "Images that went through the network together",
            ("model",),
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "scanprior_batch_seconds",
            "Time of a batch in the network",
            ("model",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "scanprior_images_waiting",
            "Images that have arrived and are not answered",
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return all of it in the text format of Prometheus."""
        return generate_latest(self.registry)
