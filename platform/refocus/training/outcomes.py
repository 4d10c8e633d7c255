"""What training says of itself: of one step, and of a look at the validation tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimizer step on this rank.

    Parameters
    ----------
    step : int
        Steps done, this one included.
    loss : float
    terms : mapping
        Each term of the loss by name, unweighted.
    samples : int
        On this rank.
    gradient_norm : float
        Before clipping.
    learning_rate : float
    data_wait_s, pairs_s, step_s : float
        Waiting for the batch, forming pairs, network and optimizer. On an accelerator work is queued, and what is
        queued counts where it is first waited for.
    """

    step: int
    loss: float
    terms: Mapping[str, float]
    samples: int
    gradient_norm: float
    learning_rate: float
    data_wait_s: float
    pairs_s: float
    step_s: float


@dataclass(slots=True)
class ValidationSums:
    """Sums over validation samples, to be added over ranks before they are divided: exact at any number of ranks.

    Parameters
    ----------
    samples : float
    sums : dict
        Sum over samples of each metric: ``loss``, ``psnr_db``, ``psnr_input_db``, ``ssim``, ``ssim_input``,
        ``signal_ratio``, ``blur_error_px``.
    """

    samples: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    NAMES = ("loss", "psnr_db", "psnr_input_db", "ssim", "ssim_input", "signal_ratio", "blur_error_px")

    def as_tensor(self) -> Tensor:
        """Return ``[samples, sum, sum, ...]`` in the order of `NAMES`, float64, to all-reduce."""
        return torch.tensor([self.samples, *(self.sums.get(n, 0.0) for n in self.NAMES)], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, values: Tensor) -> ValidationSums:
        """Rebuild from `as_tensor` of several ranks, added."""
        first, *rest = values.tolist()
        return cls(first, dict(zip(cls.NAMES, rest, strict=True)))

    def means(self) -> dict[str, float]:
        """Means over samples; empty where there was none."""
        return {name: total / self.samples for name, total in self.sums.items()} if self.samples else {}
