"""What comes after a network on its device: the image's units, its type's limits, its total."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refocus.model.normalisation import Normalisation

#: Beyond these the network is at a loss, and scaling its changes would not mend them.
_BALANCE_LIMITS = (0.5, 2.0)


def undone(answer: Tensor, constants: Normalisation, dtype: np.dtype[Any], *, floor: float | None) -> Tensor:
    """Normalised values as values of a type that single precision holds, float32."""
    return rounded(answer.mul(constants.scale).add_(constants.offset), dtype, floor=floor)


def rounded(values: Tensor, dtype: np.dtype[Any], *, floor: float | None) -> Tensor:
    """Round floats in place to what a type holds, not below `floor`, and keep them floats."""
    if floor is not None:
        values.clamp_(min=floor)
    if dtype.kind == "f":
        return values if dtype.itemsize == 4 else values.half().float()
    limits = np.iinfo(dtype)
    return values.round_().clamp_(float(limits.min), float(limits.max))


def balanced(given: Tensor, made: Tensor, dtype: np.dtype[Any], *, floor: float | None) -> Tensor:
    """Restored values whose additions and removals are scaled against each other; see `balance_factor`."""
    change = made - given
    total, added = torch.stack(
        [change.sum(dtype=torch.float64), change.clamp(min=0.0).sum(dtype=torch.float64)]
    ).tolist()
    factor = balance_factor(added, added - total)
    if factor is None:
        return made
    scaled = torch.where(change > 0.0, change * factor, change / factor)
    return rounded(scaled.add_(given), dtype, floor=floor)


def balance_factor(added: float, removed: float) -> float | None:
    """By what to multiply what was added and divide what was removed; None where it is one of them alone.

    Defocus moves light about and takes none away, so what was added must have come from somewhere: all additions and
    all removals are scaled against each other by one number for the whole plane, which no seam can betray.
    """
    if added <= 0 or removed <= 0:
        return None
    return min(max(math.sqrt(removed / added), _BALANCE_LIMITS[0]), _BALANCE_LIMITS[1])
