"""A first look for blanks on an accelerator, which a whole plane takes as long as a processor takes for some rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from refocus.model.blanks import RUN_PX, SPIKE, SPIKE_STEPS, Mask


def screened(values: Tensor, step: float) -> tuple[Mask, int]:
    """Near which rows anything may be flat, and how many spikes there are, as blanks are told.

    Parameters
    ----------
    values : Tensor, float32, shape [C, Y, X]
        What an image of that or a narrower type holds, on any device.
    step : float
        By how much pixels must differ to tell.

    Returns
    -------
    near_flat : ndarray, bool, shape [Y]
        True for all rows with flat pixels, and some beside them.
    spikes : int
    """
    across, down = ((values[:, :, 1:] == values[:, :, :-1]).all(0), (values[:, 1:] == values[:, :-1]).all(0))
    found = torch.zeros(values.shape[1], dtype=torch.bool, device=values.device)
    for mask in (_runs(across, 1, RUN_PX - 1), _runs(down, 0, RUN_PX - 1), _runs(_runs(across, 1, 2), 0, 3)):
        if mask.numel():
            found[: len(mask)] |= mask.any(1)
    # In full, as "same" is as long as the kernel where that is longer.
    near = np.convolve(found.cpu().numpy(), np.ones(2 * RUN_PX + 1))[RUN_PX:-RUN_PX] > 0.5
    return near, _spikes(values, step)


def _runs(alike: Tensor, axis: int, length: int) -> Tensor:
    """Where so many in a row begin."""
    have = 1
    while have < length and alike.shape[axis]:
        more = min(have, length - have)
        rest = max(alike.shape[axis] - more, 0)
        alike, have = alike.narrow(axis, 0, rest) & alike.narrow(axis, alike.shape[axis] - rest, rest), have + more
    return alike


def _spikes(values: Tensor, step: float) -> int:
    if min(values.shape[1:]) < 3:
        return 0
    bend = 2.0 * values[:, 1:-1, 1:-1] - values[:, 1:-1, :-2] - values[:, 1:-1, 2:]
    y, x = (bend.abs_() > 2.0 * SPIKE_STEPS * step).any(0).nonzero().unbind(1)
    around = torch.stack([values[:, y + down, x + across] for down in range(3) for across in range(3)])
    pixel, beside = around[4], torch.cat([around[:4], around[5:]])
    highest, lowest = beside.amax(0), beside.amin(0)
    beyond = torch.maximum(pixel - highest, lowest - pixel)
    return int((beyond > (SPIKE * (highest - lowest)).clamp_min(SPIKE_STEPS * step)).any(0).sum())
