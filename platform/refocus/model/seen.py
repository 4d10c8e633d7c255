"""A specimen as networks see it: normalised, on a device, window by window.

On a CUDA device a plane of values that single precision holds, nothing of it blank, is sent there once and whole
where there is room; otherwise, and on any other device, each window is read and normalised when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refocus.model.memory import most_at_once
from refocus.model.normalisation import Normalisation
from refocus.model.specimen import Specimen, Window


def held_on(device: torch.device, plane: npt.NDArray[np.generic]) -> Tensor | None:
    """Values [C, Y, X] of a plane, float32, whole on a CUDA device; None on any other, or where it does not fit.

    Neither does what single precision would round.
    """
    if device.type != "cuda" or plane.size > most_at_once(1, device):
        return None
    return sent_to(device, plane).float() if is_single(plane.dtype) else None


def is_single(dtype: np.dtype[np.generic]) -> bool:
    """Whether single precision holds all values of a type."""
    return dtype.itemsize <= 2 or (dtype.kind == "f" and dtype.itemsize == 4)


def sent_to(device: torch.device, plane: npt.NDArray[np.generic]) -> Tensor:
    """Copy an array of any layout and byte order to a device, by way of memory that it reads by itself."""
    native = plane.dtype.newbyteorder("=")
    kind = torch.from_numpy(np.empty(0, native)).dtype
    between = torch.empty(plane.shape, dtype=kind, pin_memory=_pins(device))
    np.copyto(between.numpy(), plane)
    return between.to(device, non_blocking=True)


def fetched(made: Tensor, into: npt.NDArray[np.generic]) -> None:
    """Copy values from their device into an array of the same shape, whose type holds them; cast there."""
    made = made.to(torch.from_numpy(np.empty(0, into.dtype.newbyteorder("="))).dtype)
    if _pins(made.device):
        between = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
        made = between.copy_(made)
    np.copyto(into, made.cpu().numpy())


def _pins(device: torch.device) -> bool:
    """Whether copies are faster by way of memory that stays in place."""
    return device.type == "cuda" and torch.cuda.is_available()


class SeenPlane:
    """One plane for one network.

    Parameters
    ----------
    specimen : Specimen
    constants : Normalisation
    device : torch.device
        Where windows are given.
    held : Tensor, float32, shape of the plane, optional
        Its values on that device, where nothing of the specimen is blank.
    """

    def __init__(
        self, specimen: Specimen, constants: Normalisation, device: torch.device, held: Tensor | None = None
    ) -> None:
        self.specimen, self.constants, self.device = specimen, constants, device
        self.held = held
        self._whole = None if held is None else (held - constants.offset).div_(constants.scale)

    @property
    def reads_once(self) -> bool:
        """Whether windows that overlap are best cut from a wider one: it says the same, and is normalised once."""
        return not self.specimen.blanks

    def __getitem__(self, window: Window) -> Tensor:
        """Normalised pixels of a window of what the specimen's plane shows, float32 [C, h, w]."""
        if self._whole is not None:
            return self._whole[(slice(None), *window)]
        normalised = torch.from_numpy(self.constants.apply(self.specimen[(slice(None), *window)]))
        return normalised.to(self.device)

    def contrasts(
        self, places: Sequence[tuple[int, int]], size: tuple[int, int], every: int
    ) -> npt.NDArray[np.float64]:
        """Standard deviation in windows that start at some places, on every so many-th pixel, in any unit."""
        cut = [
            (slice(None), slice(top, top + size[0], every), slice(left, left + size[1], every)) for top, left in places
        ]
        if self.held is not None:
            windows = torch.stack([self.held[where] for where in cut]).mean(1, dtype=torch.float64)
            return windows.flatten(1).std(1, correction=0).cpu().numpy()
        parts = (self.specimen[where] for where in cut)
        grey = (part[0].astype(np.float64) if len(part) == 1 else part.mean(0, dtype=np.float64) for part in parts)
        return np.asarray([window.std() for window in grey])
