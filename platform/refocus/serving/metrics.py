"""What the service counts, with labels that cannot grow without bound, and where it counts it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from refocus.wire.problem import Problem

#: Stages of a request, in their order.
STAGES = ("decode", "queue", "model", "encode")
BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_MOST_MODELS = 32
# Details quote what clients sent.
_MOST_DETAIL = 500


@dataclass(frozen=True, slots=True)
class Instrument:
    """One thing that is measured; histograms are in seconds."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    words: str
    labels: tuple[str, ...] = ()


REQUESTS = Instrument("counter", "refocus_requests_total", "Requests answered", ("route", "status", "model"))
STAGE_SECONDS = Instrument("histogram", "refocus_stage_seconds", "Time by stage", ("stage", "model"))
PIXELS = Instrument("counter", "refocus_pixels_total", "Pixels restored", ("model",))
ONGOING = Instrument("gauge", "refocus_requests_ongoing", "Requests in work")
SWAPS = Instrument("counter", "refocus_model_swaps_total", "Champions swapped in, or refused", ("model", "outcome"))
INSTRUMENTS = (REQUESTS, STAGE_SECONDS, PIXELS, ONGOING, SWAPS)


class Meters(Protocol):
    """Where measurements go: this process' own registry, or the cluster's."""

    def record(self, instrument: Instrument, value: float, *labels: str) -> None:
        """Add to a counter, set a gauge, or observe in a histogram."""

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format; may wait for other machines."""


class ProcessMeters:
    """A registry of this process alone."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        for each in INSTRUMENTS:
            if each.kind == "histogram":
                made: Counter | Gauge | Histogram = Histogram(
                    each.name, each.words, each.labels, registry=self._registry, buckets=BUCKETS_S
                )
            else:
                made = (Counter if each.kind == "counter" else Gauge)(
                    each.name, each.words, each.labels, registry=self._registry
                )
            self._made[each.name] = made

    def record(self, instrument: Instrument, value: float, *labels: str) -> None:
        """Add to a counter, set a gauge, or observe in a histogram."""
        made = self._made[instrument.name]
        series = made.labels(*labels) if labels else made
        if isinstance(series, Counter):
            series.inc(value)
        elif isinstance(series, Gauge):
            series.set(value)
        else:
            series.observe(value)

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class RequestMetrics:
    """Counts requests.

    Parameters
    ----------
    meters : Meters

    Notes
    -----
    Labels are a stage, a route, a status and a model that answered: names that clients invent never become labels.
    """

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._ongoing = 0
        self._models: set[str] = set()

    def began(self) -> None:
        """Count a request in."""
        self._ongoing += 1
        self._meters.record(ONGOING, self._ongoing)

    def ended(
        self, route: str, status: int, model: str = "", stages_ms: Mapping[str, float] | None = None, pixels: int = 0
    ) -> None:
        """Count a request out."""
        self._ongoing -= 1
        self._meters.record(ONGOING, self._ongoing)
        label = self._model(model)
        self._meters.record(REQUESTS, 1, route, str(status), label)
        for stage, duration_ms in (stages_ms or {}).items():
            if stage in STAGES:
                self._meters.record(STAGE_SECONDS, duration_ms / 1e3, stage, label)
        if pixels:
            self._meters.record(PIXELS, pixels, label)

    def _model(self, model: str) -> str:
        if model in self._models or len(self._models) < _MOST_MODELS:
            self._models.add(model)
            return model
        return "other"


def access_log(
    logger: logging.Logger,
    *,
    route: str,
    status: int,
    correlation_id: str,
    model: str,
    stages_ms: Mapping[str, float],
    problem: Problem | None = None,
) -> None:
    """Write one structured line for a request; where it was refused, with the kind of problem and its words."""
    fields = {"route": route, "status": status, "correlation_id": correlation_id, "model": model}
    if problem is not None:
        fields |= {"problem": problem.type, "detail": problem.detail[:_MOST_DETAIL]}
    times = {f"{stage}_ms": round(duration, 3) for stage, duration in stages_ms.items()}
    logger.info("%s %s %s", route, status, correlation_id, extra={**fields, **times})
