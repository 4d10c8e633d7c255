"""What a person and a dashboard read while training runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from refocus.training.loop import StepMetrics


class Meter:
    """Speed and loss since the last report."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new interval; validation and checkpoints between intervals do not count as training time."""
        self._since = time.monotonic()
        self._samples = 0
        self._steps = 0
        self._loss = 0.0
        self._waited_s = 0.0

    def add(self, step: StepMetrics) -> None:
        """Take in one step."""
        self._samples += step.samples
        self._steps += 1
        self._loss += step.loss
        self._waited_s += step.data_wait_s

    @property
    def loss(self) -> float:
        """Mean loss of the interval."""
        return self._loss / max(self._steps, 1)

    @property
    def samples_per_s(self) -> float:
        """Samples a second of this worker."""
        return self._samples / max(time.monotonic() - self._since, 1e-9)

    @property
    def steps_per_s(self) -> float:
        """Optimizer steps a second."""
        return self._steps / max(time.monotonic() - self._since, 1e-9)

    @property
    def data_wait_share(self) -> float:
        """Share of the interval in which this worker waited for data."""
        return self._waited_s / max(time.monotonic() - self._since, 1e-9)


def progress_line(
    step: StepMetrics, steps: int, meter: Meter, history: Sequence[dict[str, Any]], world_size: int
) -> str:
    """Return one line: step, loss, speed, share of waiting, time left, best validation so far."""
    left_s = (steps - step.step) / max(meter.steps_per_s, 1e-9)
    best = min((entry["validation_loss"] for entry in history if "validation_loss" in entry), default=None)
    return (
        f"step {step.step}/{steps}  loss {meter.loss:.4f}  {meter.samples_per_s * world_size:.1f} samples/s  "
        f"waiting {100 * meter.data_wait_share:.0f}%  {left_s / 60:.1f} min left"
        + ("" if best is None else f"  best {best:.4f}")
    )
