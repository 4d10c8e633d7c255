"""Inverse filters for the blur that an image's spectrum betrays: what physics already knows, handed to a network.

A short-trained network has no inverse filter of 100 px across and would spend most of its training on finding one.
Each filter here is the Wiener inverse of one rung of :mod:`refocus.optics.ladder` against one level of noise; a network
sees the answers beside the image and learns which to believe where, and to remove their noise and ringing. Filters are
local (windowed), linear and keep the light.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refocus.optics.formation import mirrored
from refocus.optics.ladder import (
    FREQUENCIES,
    PROFILES,
    RADII_PX,
    RUNG_RATIO,
    RUNG_SHARES,
    blur_ladder,
    cycles_per_px,
    widened,
)
from refocus.optics.psf import fast_fft_length

#: How far light may have come from: filters end here.
REACH_PX = 128
#: Brings changes, a tenth of the image's contrast, to the size of the image.
GAIN = 6.0
_IN_FOCUS_FLOOR = 2.5e-3
_GRID_PX = 320


class InverseFilters(nn.Module):
    """Filters each image by the inverses of its own blur.

    Parameters
    ----------
    noise_levels : tuple of (floor, slope_px)
        What stands against the blur in each filter's denominator, ``floor (1 + (slope f)^2)`` with f in cycles per
        pixel: natural images fall off about as fast as the second term rises.
    """

    gains: Tensor

    def __init__(self, noise_levels: tuple[tuple[float, float], ...]) -> None:
        super().__init__()
        shape = (len(PROFILES), len(RADII_PX), len(noise_levels), FREQUENCIES)
        # Kept with the weights: what a network was trained on must not change under it.
        if torch.get_default_device().type == "meta":
            gains = torch.empty(shape)
        else:
            gains = torch.stack([inverse_gains(*level) for level in noise_levels], dim=2)
        self.register_buffer("gains", gains)

    def forward(self, x: Tensor, blur: Tensor) -> Tensor:
        """Say what each inverse filter would change.

        Changes rather than images: those would all be nearly the input, and features that repeat one another are
        slow to learn from.

        Parameters
        ----------
        x : Tensor, shape [B, C, H, W]
        blur : Tensor, shape [B, 2, H, W]
            Geometric blur radius in pixels, and number of the profile (see :mod:`refocus.optics.ladder`), which is read
            at the corner. Between two rungs an even blur gets the nearer one's filters, widened, and an uneven one both
            rungs' answers in proportion; below the first, less of it.

        Returns
        -------
        Tensor, float32, shape [B, C * levels, H, W]
            `GAIN` times the filtered image less the image.
        """
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            plans = rungs_in(blur)
            return torch.stack([self._filtered(x[b].float(), blur[b, 0], plans[b]) for b in range(len(x))])

    def _filtered(self, image: Tensor, radius_px: Tensor, plan: Rungs) -> Tensor:
        """Changes of one image [C, H, W] by the rungs that it has: [C * levels, H, W]."""
        channels, height, width = image.shape
        size = (fast_fft_length(height + 2 * REACH_PX), fast_fft_length(width + 2 * REACH_PX))
        spectrum = torch.fft.rfft2(_continued(image, size))
        change = image.new_zeros(channels, self.gains.shape[2], height, width)
        for number, factor in plan.steps():
            weight = plan.weight(number, radius_px)
            for level, gain in enumerate(widened(self.gains[plan.profile, number], factor)):
                shaped = as_pairs(over_frequencies(gain, size))
                whole = torch.fft.irfft2(scaled_spectrum(spectrum, shaped), s=size)
                kept = whole[..., REACH_PX : REACH_PX + height, REACH_PX : REACH_PX + width]
                change[:, level] += (kept - image) * (GAIN * weight)
        return change.flatten(0, 1)


@lru_cache(maxsize=16)
def inverse_gains(floor: float, slope_px: float) -> Tensor:
    """Windowed Wiener inverses of all rungs relative to focus, float32, shape [profiles, radii, FREQUENCIES].

    ``G / (G^2 + floor (1 + (slope f)^2))`` with G the ratio of defocused to in-focus transfer functions. The window
    ends the filter at `REACH_PX`; frequency 0 passes unchanged.
    """
    ladder, fine = blur_ladder(), cycles_per_px()
    focused = ladder.in_focus[:, None]
    ratio = ladder.defocused * focused / (focused.square() + _IN_FOCUS_FLOOR)
    inverse = ratio / (ratio.square() + floor * (1.0 + (slope_px * fine).square()))
    inverse = (inverse / inverse[..., :1]).flatten(0, 1)
    cycles = torch.fft.fftfreq(_GRID_PX)
    across = torch.fft.rfftfreq(_GRID_PX)
    position = ((cycles[:, None].square() + across.square()).sqrt() / (fine[1] - fine[0])).clamp(max=FREQUENCIES - 1)
    lower = position.floor().to(torch.int64).clamp(max=FREQUENCIES - 2)
    share = position - lower
    place = torch.fft.fftfreq(_GRID_PX, 1.0 / _GRID_PX)
    away = ((place[:, None].square() + place.square()).sqrt() / REACH_PX).clamp(max=1.0)
    window = (0.5 + 0.5 * torch.cos(math.pi * away)).sqrt()
    gains = []
    for row in inverse:
        kernel = torch.fft.irfft2(torch.lerp(row[lower], row[lower + 1], share), s=(_GRID_PX, _GRID_PX)) * window
        # The projection of a round kernel has its radial spectrum (projection-slice theorem).
        line = F.pad(torch.fft.fftshift(kernel.sum(0)), (FREQUENCIES - 1 - _GRID_PX // 2,) * 2)
        spectrum = torch.fft.rfft(torch.fft.ifftshift(line)).real
        gains.append(spectrum / spectrum[0])
    return torch.stack(gains).reshape(len(PROFILES), len(RADII_PX), FREQUENCIES)


class Rungs(NamedTuple):
    """Which rungs of the ladder one image needs, and of which profile."""

    profile: int
    lowest: float
    highest: float

    def steps(self) -> list[tuple[int, float]]:
        """Rungs to filter by, and how many times as wide as theirs the blur is; below the first is no filter at all."""
        if self.lowest == self.highest:
            place = max(self.lowest, 0.0)
            return [(round(place), RUNG_RATIO ** (place - round(place)))]
        return [(number, 1.0) for number in range(max(math.floor(self.lowest), 0), math.ceil(self.highest) + 1)]

    def weight(self, number: int, radius_px: Tensor) -> Tensor | float:
        """How much a rung counts at each pixel of [h, w]; one number where the blur is the same everywhere."""
        if self.lowest == self.highest:
            return min(1.0, 1.0 + self.lowest)
        return (1.0 - (rungs_of(radius_px.float()) - number).abs()).clamp_min(0.0)


def rungs_in(blur: Tensor) -> list[Rungs]:
    """Read what images need off their blur [B, 2, H, W]: the only look at an accelerator's memory, once a batch."""
    radii = blur[:, 0].float().flatten(1)
    ends = rungs_of(torch.stack([radii.amin(1), radii.amax(1)], 1))
    rows = torch.cat([blur[:, 1:, 0, 0].float().round(), ends], 1).tolist()
    return [Rungs(int(profile), lowest, highest) for profile, lowest, highest in rows]


def rungs_of(radius_px: Tensor) -> Tensor:
    """Position on the ladder; from -1, no filter, at 0 px in a straight line to 0 at the first rung."""
    climbed = torch.log(radius_px.clamp_min(RADII_PX[0]) / RADII_PX[0]) / math.log(RUNG_RATIO)
    # A radius that is a rung must not ask for the next rung's filters, too, because of the last bit.
    climbed = (climbed * RUNG_SHARES).round() / RUNG_SHARES
    return torch.where(radius_px < RADII_PX[0], radius_px / RADII_PX[0] - 1.0, climbed).clamp(max=len(RADII_PX) - 1)


def over_frequencies(table: Tensor, size: tuple[int, int], step_px: int = 1) -> Tensor:
    """Lay the ladder's columns [FREQUENCIES] over the half spectrum of a real transform: [rows, columns / 2 + 1].

    `step_px` is the distance of the transform's samples.
    """
    lower, share = _ladder_positions(size, table.device, step_px)
    # index_select: four times as fast as indexing, on a quarter of the frequencies. The other rows mirror these.
    below, above = (table.index_select(0, at).view(share.shape) for at in (lower, lower + 1))
    upper = torch.lerp(below, above, share)
    return torch.cat([upper, upper[1 : (size[0] + 1) // 2].flip(0)])


@lru_cache(maxsize=16)
def _ladder_positions(size: tuple[int, int], device: torch.device, step_px: int) -> tuple[Tensor, Tensor]:
    """Where frequencies of rows from 0 to Nyquist lie: the column below [rows * columns], and the share of the next."""
    down = torch.arange(size[0] // 2 + 1, device=device) / (size[0] * step_px)
    across = torch.fft.rfftfreq(size[1], step_px, device=device)
    position = (down[:, None].square() + across.square()).sqrt() * (2.0 * (FREQUENCIES - 1))
    position = position.clamp(max=FREQUENCIES - 1)
    lower = position.floor().clamp(max=FREQUENCIES - 2)
    return lower.to(torch.int64).flatten(), position - lower


def as_pairs(gain: Tensor) -> Tensor:
    """Repeat gains for the real and the imaginary part: products of equal layouts are several times as fast."""
    return gain[..., None].expand(*gain.shape, 2).contiguous()


def scaled_spectrum(spectrum: Tensor, pairs: Tensor) -> Tensor:
    """Multiply by real gains (`as_pairs`) without first making them complex, as the plain product does."""
    return torch.view_as_complex(torch.view_as_real(spectrum) * pairs)


def _continued(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Continue [C, H, W] by reflection to `size`, `REACH_PX` of it in front."""
    below, right = size[0] - image.shape[-2] - REACH_PX, size[1] - image.shape[-1] - REACH_PX
    if below < image.shape[-2] and right < image.shape[-1]:
        return F.pad(image, (REACH_PX, right, REACH_PX, below), mode="reflect")
    for axis, wanted in zip((-2, -1), size, strict=True):
        image = image.index_select(axis, mirrored(image.shape[axis], wanted, REACH_PX, image.device))
    return image
