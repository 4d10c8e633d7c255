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
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refocus.model.memory import most_at_once
from refocus.model.rungs import Rung, rungs_in, tables_of
from refocus.optics.formation import mirrored_to
from refocus.optics.ladder import FREQUENCIES, PROFILES, RADII_PX, blur_ladder, cycles_per_px
from refocus.optics.psf import fast_fft_length

#: Filters end here, or after so many radii, where that is further.
_REACH_PX, _REACH_RADII = 128, 8.0
#: Brings changes, a tenth of the image's contrast, to the size of the image.
GAIN = 6.0
_IN_FOCUS_FLOOR = 2.5e-3
#: Of the grids that filters are made on, in units of their reach.
_GRID = 2.5
#: Of an image's field, its spectra and what is multiplied by them, counted as fields: as much is held at a time.
_FIELDS_HELD = 8


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

    def forward(self, x: Tensor, blur: Tensor, rungs: Sequence[Rung] | None = None) -> Tensor:
        """Say what each inverse filter would change.

        Changes rather than images: those would all be nearly the input, and features that repeat one another are
        slow to learn from.

        Parameters
        ----------
        x : Tensor, shape [B, C, H, W]
        blur : Tensor, shape [B, 2, H, W]
            Geometric blur radius in pixels, and number of the profile (see :mod:`refocus.optics.ladder`), which is read
            at the corner.
        rungs : sequence, optional
            Of this blur, with what stands beyond the images' rims. That is a mirror image otherwise.

        Returns
        -------
        Tensor, float32, shape [B, C * levels, H, W]
            `GAIN` times the filtered image less the image.
        """
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            x = x.float()
            batch, channels, height, width = x.shape
            change = x.new_zeros(batch, channels, self.gains.shape[2], height, width)
            by_room = sorted(rungs_in(blur) if rungs is None else rungs, key=_room)
            for (side_px, reach), these in groupby(by_room, key=_room):
                alike = list(these)
                field = channels * math.prod(n + 2 * side_px * reach for n in (height, width))
                at_once = most_at_once(_FIELDS_HELD * field, x.device)
                for first in range(0, len(alike), at_once):
                    self._filter(x, blur[:, 0], alike[first : first + at_once], change)
            return change.flatten(1, 2)

    def _filter(self, x: Tensor, radius_px: Tensor, rungs: Sequence[Rung], change: Tensor) -> None:
        """Add to changes [B, C, levels, H, W] of a batch what rungs of which filters reach equally far ask for."""
        images = torch.stack([x[rung.image] for rung in rungs])
        field, reach = _continued(images, rungs)
        size = (field.shape[-2], field.shape[-1])
        inside = (..., *(slice(reach, reach + length) for length in images.shape[-2:]))
        spectrum, weights = torch.fft.rfft2(field), [GAIN * rung.weight(radius_px) for rung in rungs]
        for level, gain in enumerate(tables_of(rungs, self.gains).unbind(1)):
            shaped = as_pairs(over_frequencies(gain[:, None], size))
            whole = torch.fft.irfft2(scaled_spectrum(spectrum, shaped), s=size)
            for rung, weight, sharpening in zip(rungs, weights, whole[inside] - images, strict=True):
                change[rung.image, :, level] += sharpening * weight


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
    side = 2 * round(0.5 * _GRID * reach_px)
    place = torch.fft.fftfreq(side, 1.0 / side)
    away = ((place[:, None].square() + place.square()).sqrt() / reach_px).clamp(max=1.0)
    window = (0.5 + 0.5 * torch.cos(math.pi * away)).sqrt()
    ended = []
    for table in tables:
        kernel = torch.fft.irfft2(over_frequencies(table, (side, side)), s=(side, side)) * window
        # The projection of a round kernel has its radial spectrum (projection-slice theorem).
        line = F.pad(torch.fft.fftshift(kernel.sum(0)), (FREQUENCIES - 1 - side // 2,) * 2)
        spectrum = torch.fft.rfft(torch.fft.ifftshift(line)).real
        ended.append(spectrum / spectrum[0])
    return torch.stack(ended)


def over_frequencies(table: Tensor, size: tuple[int, int], step_px: int = 1) -> Tensor:
    """Lay the ladder's columns [..., FREQUENCIES] over half spectra of real transforms: [..., rows, columns / 2 + 1].

    `step_px` is the distance of the transform's samples.
    """
    lower, share = _ladder_positions(size, table.device, step_px)
    # index_select: four times as fast as indexing, and on two axes three times as fast as on more. On a quarter of the
    # frequencies: the other rows mirror these.
    rows = table.reshape(-1, FREQUENCIES)
    below, above = (rows.index_select(-1, at).view(*table.shape[:-1], *share.shape) for at in (lower, lower + 1))
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


def _room(rung: Rung) -> tuple[int, int]:
    """What a rung's filters see beyond the rims: side of squares in pixels, and how many of them to each side."""
    if rung.around is None:
        return 1, math.ceil(filter_reach_px(rung.radius_px))
    return rung.around.side_px, rung.around.reach


def _continued(images: Tensor, rungs: Sequence[Rung]) -> tuple[Tensor, int]:
    """Continue images [n, C, H, W] as far as the filters of their rungs reach, and say how many pixels stand in front.

    By reflection, or by what is expected. What that leaves unexplained, noise above all, is mirrored and fades away:
    an edge between the image and what surrounds it would ring through the filters.
    """
    height, width = images.shape[-2:]
    side_px, squares = _room(rungs[0])
    reach = side_px * squares
    expected = [rung.around.expected for rung in rungs if rung.around is not None]
    if not expected:
        rows, columns = (fast_fft_length(length + 2 * reach) for length in (height, width))
        return mirrored_to(images, (rows, columns), (reach, reach)), reach
    field = F.interpolate(torch.stack(expected), scale_factor=side_px, mode="bilinear", align_corners=False)
    rows, columns = field.shape[-2:]
    left = images - field[..., reach : reach + height, reach : reach + width]
    fading = _fading(height, rows, reach, images.device)[:, None] * _fading(width, columns, reach, images.device)
    return field.addcmul_(mirrored_to(left, (rows, columns), (reach, reach)), fading), reach


def _fading(length: int, whole: int, before: int, device: torch.device) -> Tensor:
    """1 over an image's length, and in straight lines to 0 at a distance from both its ends, whatever its field is."""
    place = torch.arange(whole, device=device) - before
    away = torch.maximum(-place, place - length + 1).clamp_min(0)
    return (1.0 - away / before).clamp_min(0.0)
