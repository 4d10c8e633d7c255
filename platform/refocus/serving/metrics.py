"""Counters and histograms in Prometheus' format, with labels that cannot grow without bound."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

#: Stages of a request, in their order.
STAGES = ("receive", "decode", "queue", "model", "encode")
_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_MOST_MODELS = 32


class RequestMetrics:
    """What one ingress replica counts.

    Notes
    -----
    Labels are a stage, a route, a status and a model that answered: names that clients invent never become labels.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "refocus_requests", "Requests answered", ["route", "status", "model"], registry=self._registry
        )
        self._stages = Histogram(
            "refocus_stage_seconds", "Time by stage", ["stage", "model"], registry=self._registry, buckets=_BUCKETS_S
        )
        self._pixels = Counter("refocus_pixels", "Pixels restored", ["model"], registry=self._registry)
        self._ongoing = Gauge("refocus_requests_ongoing", "Requests in work", registry=self._registry)
        self._models: set[str] = set()

    def began(self) -> None:
        """Count a request in."""
        self._ongoing.inc()

    def ended(
        self, route: str, status: int, model: str = "", stages_ms: Mapping[str, float] | None = None, pixels: int = 0
    ) -> None:
        """Count a request out."""
        self._ongoing.dec()
        label = self._model(model)
        self._requests.labels(route, str(status), label).inc()
        for stage, duration_ms in (stages_ms or {}).items():
            if stage in STAGES:
                self._stages.labels(stage, label).observe(duration_ms / 1e3)
        if pixels:
            self._pixels.labels(label).inc(pixels)

    def _model(self, model: str) -> str:
        if model in self._models or len(self._models) < _MOST_MODELS:
            self._models.add(model)
            return model
        return "other"

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


def access_log(
    logger: logging.Logger, *, route: str, status: int, correlation_id: str, model: str, stages_ms: Mapping[str, float]
) -> None:
    """Write one structured line for a request."""
    fields = {"route": route, "status": status, "correlation_id": correlation_id, "model": model}
    times = {f"{stage}_ms": round(duration, 3) for stage, duration in stages_ms.items()}
    logger.info("%s %s %s", route, status, correlation_id, extra={**fields, **times})
