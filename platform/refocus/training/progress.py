"""What a person and a dashboard read while training runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor

from refocus.training.outcomes import StepMetrics


@dataclass(slots=True)
class Interval:
    """Steps since the last report, summed: over this rank, or over all ranks once `as_tensor` was all-reduced.

    Parameters
    ----------
    ranks, samples, steps, loss : float
    waited_s : float
        Waiting for data.
    elapsed_s : float
        Since the interval began; validation and checkpoints lie between intervals.
    """

    ranks: float = 1.0
    samples: float = 0.0
    steps: float = 0.0
    loss: float = 0.0
    waited_s: float = 0.0
    elapsed_s: float = 0.0

    def as_tensor(self) -> Tensor:
        """Return the sums, float64, to all-reduce."""
        return torch.tensor(astuple(self), dtype=torch.float64)

    @classmethod
    def from_tensor(cls, values: Tensor) -> Interval:
        """Rebuild from `as_tensor` of several ranks, added."""
        return cls(*values.tolist())

    @property
    def mean_loss(self) -> float:
        """Mean loss of a step."""
        return self.loss / max(self.steps, 1.0)

    @property
    def samples_per_s(self) -> float:
        """Samples a second of all ranks in the sums."""
        return self.samples * self.ranks / max(self.elapsed_s, 1e-9)

    @property
    def steps_per_s(self) -> float:
        """Optimizer steps a second."""
        return self.steps / max(self.elapsed_s, 1e-9)

    @property
    def data_wait_share(self) -> float:
        """Share of the time in which a rank waited for data."""
        return self.waited_s / max(self.elapsed_s, 1e-9)


@dataclass(slots=True)
class Meter:
    """Measures the interval since the last report on this rank."""

    _sums: Interval = field(default_factory=Interval)
    _since: float = field(default_factory=time.monotonic)

    def restart(self) -> None:
        """Begin a new interval."""
        self._sums, self._since = Interval(), time.monotonic()

    def add(self, step: StepMetrics) -> None:
        """Take in one step."""
        self._sums.samples += step.samples
        self._sums.steps += 1
        self._sums.loss += step.loss
        self._sums.waited_s += step.data_wait_s

    def interval(self) -> Interval:
        """Return the interval so far."""
        self._sums.elapsed_s = time.monotonic() - self._since
        return self._sums


def progress_line(
    step: StepMetrics, steps: int, interval: Interval, history: Sequence[dict[str, Any]], world_size: int
) -> str:
    """Return one line: step, loss, speed, share of waiting, time left, best validation so far."""
    left_s = (steps - step.step) / max(interval.steps_per_s, 1e-9)
    best = min((entry["validation_loss"] for entry in history if "validation_loss" in entry), default=None)
    return (
        f"step {step.step}/{steps}  loss {interval.mean_loss:.4f}  {interval.samples_per_s * world_size:.1f} samples/s"
        f"  waiting {100 * interval.data_wait_share:.0f}%  {left_s / 60:.1f} min left"
        + ("" if best is None else f"  best {best:.4f}")
    )
