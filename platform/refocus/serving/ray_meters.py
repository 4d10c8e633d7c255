"""Metrics of all replicas on all machines, through the agents that every Ray node runs."""

from __future__ import annotations

import contextlib
import http.client
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from refocus.serving.metrics import BUCKETS_S, INSTRUMENTS, Instrument

_TIMEOUT_S = 3.0


class RayMeters:
    """Hands measurements to this node's agent, a few seconds late, and reads those of all nodes.

    Ray puts ``ray_`` before every name, adds labels for the process that counted, and reckons the sums of histograms
    from their buckets.
    """

    def __init__(self) -> None:
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        for each in INSTRUMENTS:
            if each.kind == "histogram":
                self._made[each.name] = Histogram(each.name, each.words, list(BUCKETS_S), tag_keys=each.labels)
            else:
                kind = Counter if each.kind == "counter" else Gauge
                self._made[each.name] = kind(each.name, each.words, tag_keys=each.labels)

    def record(self, instrument: Instrument, value: float, *labels: str) -> None:
        """Add to a counter, set a gauge, or observe in a histogram."""
        made = self._made[instrument.name]
        # Ray takes no empty label.
        tags = {name: label or "none" for name, label in zip(instrument.labels, labels, strict=True)}
        if isinstance(made, Counter):
            made.inc(value, tags)
        elif isinstance(made, Gauge):
            made.set(value, tags)
        else:
            made.observe(value, tags)

    def exposition(self) -> bytes:
        """Return the lines of every node that answers within three seconds."""
        nodes = [
            f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics" for n in ray.nodes() if n["Alive"]
        ]
        with ThreadPoolExecutor(max(1, min(16, len(nodes)))) as pool:
            lines = [line for page in pool.map(_lines_of, nodes) for line in page]
        text = []
        # Every metric in one block, as the format wants it, whatever the number of nodes.
        for each in INSTRUMENTS:
            name = f"ray_{each.name}"
            text += [f"# HELP {name} {each.words}", f"# TYPE {name} {each.kind}"]
            text += [line for line in lines if line.startswith(name)]
        return "\n".join([*text, ""]).encode()


def _lines_of(url: str) -> list[str]:
    # A node that ends while it answers breaks off in ways that are no OSError, too.
    lost = contextlib.suppress(OSError, http.client.HTTPException)
    with lost, urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
        return [line for line in answer.read().decode().splitlines() if line.startswith("ray_refocus_")]
    return []
