"""How the contrast of tiles is spread over scales, many tiles at once on any device.

Octaves of a pyramid see where contrast is strong, rings of the spectrum see the dark rings of the defocus. White noise
is told by a second difference in both directions (Immerkaer, Comput. Vis. Image Underst. 64, 300 (1996)) and taken off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from refocus.model.seen import is_single, sent_to

Values = npt.NDArray[Any]

#: Octaves of the pyramid: the coarsest detail has periods of about 100 px, as a blur of 50 px leaves.
_OCTAVES = 6
#: White noise of variance 1 leaves this much in an octave: sum of squares of (point - Gaussian of 1 px).
_NOISE_GAIN = 1.0 - 2.0 / (2 * np.pi) + 1.0 / (4 * np.pi)
#: Weights of a Gaussian of 1 px, from its centre out.
_GAUSSIAN = tuple(math.exp(-0.5 * n * n) / sum(math.exp(-0.5 * m * m) for m in range(-4, 5)) for n in range(5))
#: Edges of the rings of the spectrum, in cycles per pixel.
_RINGS = np.geomspace(0.006, 0.5, 13)
FEATURES = (
    *(f"octave_{n}" for n in range(_OCTAVES)),
    "remainder",
    *(f"ring_{n}" for n in range(len(_RINGS) - 1)),
    "structure_over_noise",
)


@dataclass(frozen=True, slots=True)
class Contrast:
    """Of B tiles of one size.

    Attributes
    ----------
    pixels : int
        In a tile.
    noise_variance : ndarray, shape [B]
        Of white noise.
    energy, noise : ndarray, shape [B, octaves + 1]
        Of each octave and of what remains, and what white noise contributes to it.
    rings : ndarray, shape [B, rings]
        Mean power of each ring of the spectrum.
    ring_bins : ndarray, shape [rings]
        Frequencies in each ring, at least 1.
    """

    pixels: int
    noise_variance: Values
    energy: Values
    noise: Values
    rings: Values
    ring_bins: Values

    @classmethod
    def of(cls, tiles: Values, device: torch.device | str = "cpu") -> Contrast:
        """Measure grey tiles [B, Y, X] of any numeric type and unit, on a device."""
        if not is_single(tiles.dtype):
            # What single precision would round: an offset far above the contrast.
            tiles = (tiles - tiles.mean((1, 2), keepdims=True, dtype=np.float64)).astype(np.float32)
        values = sent_to(torch.device(device), tiles).float()
        centred = values - values.mean((1, 2), keepdim=True)
        noise_variance = _median(_bent(centred).abs_().flatten(1)).cpu().double().numpy() / (0.6745 * 6.0)
        noise_variance = np.square(noise_variance)
        level, energy = centred, []
        for _ in range(_OCTAVES):
            energy.append((level - _smoothed(level)).square().mean((1, 2)))
            level = F.avg_pool2d(level[:, None], 2)[:, 0]
        energy.append(level.var((1, 2), correction=0))
        taper, members, bins = _rings_of(tiles.shape[1], tiles.shape[2], centred.device)
        power = torch.view_as_real(torch.fft.rfft2(centred * taper)).square_().sum(-1) / taper.square().sum()
        share = np.array([*(_NOISE_GAIN / 4.0**n for n in range(_OCTAVES)), 4.0**-_OCTAVES])
        return cls(
            math.prod(tiles.shape[1:]),
            noise_variance,
            torch.stack(energy, 1).cpu().double().numpy(),
            noise_variance[:, None] * share,
            (power.flatten(1) @ members).cpu().double().numpy(),
            bins,
        )

    def excess(self) -> Values:
        """Largest excess of an octave over white noise, in standard deviations of what noise alone would give, [B].

        The noise is known to about 2%, which bounds how faint a structure can be told from it.
        """
        independent = self.pixels / 4.0 ** np.arange(self.energy.shape[1])
        uncertain = self.noise * np.sqrt(2.0 / np.maximum(independent, 1.0) + 0.02**2)
        excess: Values = ((self.energy - self.noise) / np.maximum(uncertain, 1e-30)).max(1)
        return excess

    def features(self) -> Values:
        """Rows of `FEATURES`, [B, F]: log10 of shares, freed of white noise. None depends on the unit of intensity.

        The last number is log10 of variance over noise variance.
        """
        energy, noise = self.energy, self.noise
        total = np.maximum(energy.sum(1, keepdims=True), 1e-30)
        # A share below its noise by far cannot be known better than this.
        share = np.maximum(energy - noise, 0.02 * noise + 1e-6 * total) / total
        of_noise = noise.sum(1, keepdims=True)
        structure = np.maximum(total - of_noise, 1e-3 * of_noise + 1e-12 * total)
        ratio = structure / np.maximum(of_noise, 1e-9 * total)
        white = self.noise_variance[:, None]
        signal = np.maximum(self.rings - white, white * np.maximum(0.01, 1.0 / np.sqrt(self.ring_bins)))
        # In energy per octave of frequency.
        ring = signal * _RINGS[1:] * _RINGS[:-1]
        ring = ring / np.maximum(ring.sum(1, keepdims=True), 1e-30)
        return np.concatenate([np.log10(share), np.log10(ring + 1e-6), np.log10(ratio)], 1)


def features_of(tile: Values) -> Values:
    """Of one grey tile [Y, X], as :meth:`Contrast.features`."""
    features: Values = Contrast.of(np.asarray(tile)[None]).features()[0]
    return features


def _bent(values: Tensor) -> Tensor:
    """Second differences along both axes of [B, Y, X], of the same size."""
    for axis in (1, 2):
        wide = _continued(values, axis, 1)
        low, middle, high = (wide.narrow(axis, first, values.shape[axis]) for first in range(3))
        values = low + high - 2.0 * middle
    return values


def _smoothed(values: Tensor) -> Tensor:
    """Under a Gaussian of 1 px, [B, Y, X]."""
    reach = len(_GAUSSIAN) - 1
    for axis in (1, 2):
        wide, size = _continued(values, axis, reach), values.shape[axis]
        made = wide.narrow(axis, reach, size) * _GAUSSIAN[0]
        for away in range(1, reach + 1):
            beside = wide.narrow(axis, reach - away, size) + wide.narrow(axis, reach + away, size)
            made.add_(beside, alpha=_GAUSSIAN[away])
        values = made
    return values


def _continued(values: Tensor, axis: int, reach: int) -> Tensor:
    """Mirrored about the rims of the outermost pixels, however few there are."""
    size = values.shape[axis]
    place = torch.arange(-reach, size + reach, device=values.device) % (2 * size)
    return values.index_select(axis, torch.where(place < size, place, 2 * size - 1 - place))


def _median(rows: Tensor) -> Tensor:
    """Of each row, as numpy has it: the mean of the two in the middle where there are two."""
    if rows.device.type == "cpu":
        # Its partition is several times as fast as a sort.
        return torch.from_numpy(np.median(rows.numpy(), axis=1))
    middle = rows.shape[1] // 2
    return rows.sort(1).values[:, [(rows.shape[1] - 1) // 2, middle]].mean(1)


@lru_cache(maxsize=4)
def _rings_of(height_px: int, width_px: int, device: torch.device) -> tuple[Tensor, Tensor, Values]:
    """Taper, what each frequency of an ``rfft2`` counts in each ring's mean, and how many each ring has."""
    taper = np.hanning(height_px + 2)[1:-1, None] * np.hanning(width_px + 2)[1:-1]
    frequency = np.hypot(np.fft.fftfreq(height_px)[:, None], np.fft.rfftfreq(width_px))
    ring = np.searchsorted(_RINGS, frequency.ravel()) - 1
    inside = ring[:, None] == np.arange(len(_RINGS) - 1)
    bins = np.maximum(inside.sum(0), 1)
    members = torch.from_numpy((inside / bins).astype(np.float32)).to(device)
    return torch.from_numpy(taper.astype(np.float32)).to(device), members, bins
