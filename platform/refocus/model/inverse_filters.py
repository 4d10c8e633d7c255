"""Inverse filters for the blur that an image's spectrum betrays: what physics already knows, handed to a network.

A short-trained network has no inverse filter of 100 px across and would spend most of its training on finding one.
Each filter here is the Wiener inverse of one rung of :mod:`refocus.optics.ladder` against one level of noise; a network
sees the answers beside the image and learns which to believe where, and to remove their noise and ringing. Filters are
local (windowed), linear and keep the light.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refocus.optics.formation import mirrored_to
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

#: Filters end here, or after so many radii, where that is further.
_REACH_PX, _REACH_RADII = 128, 8.0
#: Brings changes, a tenth of the image's contrast, to the size of the image.
GAIN = 6.0
_IN_FOCUS_FLOOR = 2.5e-3
#: Of the grids that filters are made on, in units of their reach.
_GRID = 2.5


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

    def forward(
        self, x: Tensor, blur: Tensor, surroundings: Sequence[Sequence[Surroundings | None]] | None = None
    ) -> Tensor:
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
        surroundings : sequence, optional
            Of each image and each of its rungs: what stands beyond the image's rims. It is mirrored there otherwise.

        Returns
        -------
        Tensor, float32, shape [B, C * levels, H, W]
            `GAIN` times the filtered image less the image.
        """
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            plans = rungs_in(blur)
            around = surroundings or [[None] * len(plan.steps()) for plan in plans]
            each = zip(x.float(), blur[:, 0], plans, around, strict=True)
            return torch.stack([self._filtered(*one) for one in each])

    def _filtered(
        self, image: Tensor, radius_px: Tensor, plan: Rungs, surroundings: Sequence[Surroundings | None]
    ) -> Tensor:
        """Changes of one image [C, H, W] by the rungs that it has: [C * levels, H, W]."""
        channels, height, width = image.shape
        change = image.new_zeros(channels, self.gains.shape[2], height, width)
        for (number, factor), around in zip(plan.steps(), surroundings, strict=True):
            field, reach = _mirrored(image, number) if around is None else _surrounded(image, around)
            size = (field.shape[-2], field.shape[-1])
            inside = (..., slice(reach, reach + height), slice(reach, reach + width))
            spectrum, weight = torch.fft.rfft2(field), plan.weight(number, radius_px)
            for level, gain in enumerate(widened(self.gains[plan.profile, number], factor)):
                shaped = as_pairs(over_frequencies(gain, size))
                whole = torch.fft.irfft2(scaled_spectrum(spectrum, shaped), s=size)
                change[:, level] += (whole[inside] - image) * (GAIN * weight)
        return change.flatten(0, 1)


@lru_cache(maxsize=16)
def inverse_gains(floor: float, slope_px: float) -> Tensor:
    """Windowed Wiener inverses of all rungs relative to focus, float32, shape [profiles, radii, FREQUENCIES].

    ``G / (G^2 + floor (1 + (slope f)^2))`` with G the ratio of defocused to in-focus transfer functions. A window
    ends each filter at its reach; frequency 0 passes unchanged.
    """
    ladder, fine = blur_ladder(), cycles_per_px()
    focused = ladder.in_focus[:, None]
    ratio = ladder.defocused * focused / (focused.square() + _IN_FOCUS_FLOOR)
    inverse = ratio / (ratio.square() + floor * (1.0 + (slope_px * fine).square()))
    inverse = inverse / inverse[..., :1]
    by_rung = zip(inverse.unbind(1), RADII_PX, strict=True)
    return torch.stack([_ended(tables, filter_reach_px(radius_px)) for tables, radius_px in by_rung], 1)


def filter_reach_px(radius_px: float) -> float:
    """How far light may have come from, as a filter for a blur of this radius has it: it ends there."""
    return max(_REACH_PX, _REACH_RADII * radius_px)


def _ended(tables: Tensor, reach_px: float) -> Tensor:
    """Radial transfer functions [n, FREQUENCIES] of kernels that end at a distance."""
    side, fine = 2 * round(0.5 * _GRID * reach_px), cycles_per_px()
    position = (torch.fft.fftfreq(side)[:, None].square() + torch.fft.rfftfreq(side).square()).sqrt()
    position = (position / (fine[1] - fine[0])).clamp(max=FREQUENCIES - 1)
    lower = position.floor().to(torch.int64).clamp(max=FREQUENCIES - 2)
    share = position - lower
    place = torch.fft.fftfreq(side, 1.0 / side)
    away = ((place[:, None].square() + place.square()).sqrt() / reach_px).clamp(max=1.0)
    window = (0.5 + 0.5 * torch.cos(math.pi * away)).sqrt()
    ended = []
    for table in tables:
        kernel = torch.fft.irfft2(torch.lerp(table[lower], table[lower + 1], share), s=(side, side)) * window
        # The projection of a round kernel has its radial spectrum (projection-slice theorem).
        line = F.pad(torch.fft.fftshift(kernel.sum(0)), (FREQUENCIES - 1 - side // 2,) * 2)
        spectrum = torch.fft.rfft(torch.fft.ifftshift(line)).real
        ended.append(spectrum / spectrum[0])
    return torch.stack(ended)


class Surroundings(NamedTuple):
    """What is expected of an image and beyond its rims, as means of squares: a field whose ends meet.

    Attributes
    ----------
    expected : Tensor, float32, shape [C, rows, columns]
    side_px : int
        Of the squares.
    reach : int
        So many of them lie before the image.
    """

    expected: Tensor
    side_px: int
    reach: int


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
    """Lay the ladder's columns [..., FREQUENCIES] over half spectra of real transforms: [..., rows, columns / 2 + 1].

    `step_px` is the distance of the transform's samples.
    """
    lower, share = _ladder_positions(size, table.device, step_px)
    # index_select: four times as fast as indexing, on a quarter of the frequencies. The other rows mirror these.
    below, above = (table.index_select(-1, at).view(*table.shape[:-1], *share.shape) for at in (lower, lower + 1))
    upper = torch.lerp(below, above, share)
    return torch.cat([upper, upper[..., 1 : (size[0] + 1) // 2, :].flip(-2)], -2)


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


def _mirrored(image: Tensor, number: int) -> tuple[Tensor, int]:
    """Continue [C, H, W] by reflection as far as a rung's filters reach, and say how many pixels stand in front."""
    reach = math.ceil(filter_reach_px(RADII_PX[number]))
    height, width = (fast_fft_length(length + 2 * reach) for length in image.shape[-2:])
    return mirrored_to(image, (height, width), reach), reach


def _surrounded(image: Tensor, around: Surroundings) -> tuple[Tensor, int]:
    """Continue [C, H, W] by what is expected, and say how many pixels stand in front.

    What the expected leaves unexplained, noise above all, is mirrored and fades away: an edge between the image and
    what surrounds it would ring through the filters.
    """
    height, width = image.shape[-2:]
    reach = around.side_px * around.reach
    field = F.interpolate(around.expected[None], scale_factor=around.side_px, mode="bilinear", align_corners=False)[0]
    rows, columns = field.shape[-2:]
    left = image - field[..., reach : reach + height, reach : reach + width]
    fading = _fading(height, rows, reach, image.device)[:, None] * _fading(width, columns, reach, image.device)
    return field.addcmul_(mirrored_to(left, (rows, columns), reach), fading), reach


def _fading(length: int, whole: int, before: int, device: torch.device) -> Tensor:
    """1 over an image's length, and in straight lines to 0 at a distance from both its ends, whatever its field is."""
    place = torch.arange(whole, device=device) - before
    away = torch.maximum(-place, place - length + 1).clamp_min(0)
    return (1.0 - away / before).clamp_min(0.0)
