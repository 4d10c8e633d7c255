"""Inverse filters for a ladder of defocus distances: what physics already knows, handed to a network.

A short-trained network has no inverse filter of 70 px across and would spend most of its training on finding one.
Each filter here is the Wiener inverse of one blur; a network sees all answers beside the image and learns which to
believe where, and to remove their noise and ringing. Filters are local (windowed), linear and sum to 1.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor, nn

from refocus.optics.psf import widefield_psf
from refocus.optics.settings import OpticalSystem

#: The optics whose diffraction the filters assume. Radii 7% off lose under half a decibel, other objectives more.
NOMINAL = OpticalSystem(numerical_aperture=0.75, wavelength_um=0.525, pixel_size_um=0.325)
_NOISE_FLOOR, _NOISE_SLOPE_PX = 2e-3, 20.0
_IN_FOCUS_FLOOR = 2.5e-3
_GRID_PX = 192
#: Brings changes, a tenth of the image's contrast, to the size of the image.
GAIN = 6.0
#: Tiles of one image come in as many widths: at its left rim, inside, at its right rim.
_SIZES_KEPT = 3


class FilterBank(nn.Module):
    """Filters an image by each of several inverse blurs.

    Parameters
    ----------
    radii_px : tuple of float
        Geometric blur radii, in full-resolution pixels.
    half_px : int
        Reach of each filter, in its own pixels.
    coarse : int
        1 filters the image itself, 2 its 2 x 2 means: a wide blur leaves nothing that those lose.
    """

    kernels: Tensor

    def __init__(self, radii_px: tuple[float, ...], *, half_px: int = 48, coarse: int = 1) -> None:
        super().__init__()
        self.half_px = half_px
        self.coarse = coarse
        side = 2 * half_px + 1
        # Kept with the weights: what a network was trained on must not change under it.
        if torch.get_default_device().type == "meta":
            kernels = torch.empty(len(radii_px), side, side)
        else:
            kernels = torch.stack([inverse_filter(radius, half_px, coarse) for radius in radii_px])
        self.register_buffer("kernels", kernels)
        self._transfers: dict[tuple[int, int, torch.device], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Say what each inverse filter would change.

        Changes rather than images: those would all be nearly the input, and features that repeat one another are
        slow to learn from.

        Parameters
        ----------
        x : Tensor, shape [B, C, H, W]
            H and W multiples of `coarse`.

        Returns
        -------
        Tensor, float32, shape [B, C * filters, H / coarse, W / coarse]
            `GAIN` times the filtered image less the image.
        """
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            x = F.avg_pool2d(x.float(), self.coarse) if self.coarse > 1 else x.float()
            batch, _, height, width = x.shape
            reach = self.half_px
            size = (next_fast_len(height + 2 * reach, True), next_fast_len(width + 2 * reach, True))
            spectrum = torch.fft.rfft2(_mirrored(x, reach), s=size)
            change = torch.fft.irfft2(spectrum[:, :, None] * self._transfer(size), s=size)
            inside = change[..., reach : reach + height, reach : reach + width]
            return inside.reshape(batch, -1, height, width)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._transfers.clear()
        super()._load_from_state_dict(*args, **kwargs)

    @torch.compiler.disable
    def _transfer(self, size: tuple[int, int]) -> Tensor:
        """`GAIN` times (filter - 1) over an ``rfft2`` grid, shape [filters, ...]; as dear as applying it, so kept."""
        key = (*size, self.kernels.device)
        if key not in self._transfers:
            reach = self.half_px
            change = GAIN * self.kernels.float()
            change[:, reach, reach] -= GAIN
            placed = F.pad(change, (0, size[1] - 2 * reach - 1, 0, size[0] - 2 * reach - 1))
            while len(self._transfers) >= _SIZES_KEPT:
                self._transfers.pop(next(iter(self._transfers)), None)
            self._transfers[key] = torch.fft.rfft2(placed.roll((-reach, -reach), (-2, -1)))
        return self._transfers[key]


@lru_cache(maxsize=256)
def inverse_filter(radius_px: float, half_px: int, coarse: int = 1) -> Tensor:
    """Windowed Wiener inverse of one blur relative to focus, shape [2 half + 1, 2 half + 1], summing to 1.

    ``G / (G^2 + floor (1 + (slope f)^2))`` with G the ratio of defocused to in-focus transfer functions, f in cycles
    per full-resolution pixel: natural images fall off about as fast as the second term rises.
    """
    system = NOMINAL.model_copy(update={"pixel_size_um": NOMINAL.pixel_size_um * coarse})
    distance = NOMINAL.defocus_um_for(radius_px)
    spread = widefield_psf(system, torch.tensor([distance, 0.0], dtype=torch.float64), size_px=_GRID_PX)
    out, focused = torch.fft.fft2(torch.fft.ifftshift(spread, dim=(-2, -1))).real
    ratio = (out * focused) / (focused**2 + _IN_FOCUS_FLOOR)
    cycles = torch.fft.fftfreq(_GRID_PX, dtype=torch.float64) / coarse
    frequency_squared = cycles[:, None] ** 2 + cycles**2
    inverse = ratio / (ratio**2 + _NOISE_FLOOR * (1.0 + _NOISE_SLOPE_PX**2 * frequency_squared))
    kernel = torch.fft.fftshift(torch.fft.ifft2(inverse).real)
    middle = _GRID_PX // 2
    window = slice(middle - half_px, middle + half_px + 1)
    place = torch.arange(-half_px, half_px + 1, dtype=torch.float64)
    away = ((place[:, None] ** 2 + place**2).sqrt() / half_px).clamp(max=1.0)
    kernel = kernel[window, window] * (0.5 + 0.5 * torch.cos(math.pi * away)).sqrt()
    return (kernel / kernel.sum()).float()


def _mirrored(x: Tensor, reach: int) -> Tensor:
    """Mirror all four rims by `reach`; as often as a small image needs, and one pixel is repeated."""
    if min(x.shape[-2:]) > reach:
        return F.pad(x, (reach, reach, reach, reach), mode="reflect")
    for axis in (-2, -1):
        size = x.shape[axis]
        place = torch.arange(-reach, size + reach, device=x.device)
        if size > 1:
            period = 2 * (size - 1)
            place = place % period
            place = torch.where(place < size, place, period - place)
        else:
            place = torch.zeros_like(place)
        x = x.index_select(axis, place)
    return x
