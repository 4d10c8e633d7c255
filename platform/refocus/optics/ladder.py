"""A ladder of blurs: transfer functions for every geometric radius and sampling that an image may have.

Seen from the pixels, a defocused objective has two numbers: the geometric radius of its blur, which sets where the
transfer function's zeros lie, and how finely the pixels sample its resolution, which bends them. Whoever does not
know the optics of an image can climb this ladder and look which rung fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from refocus.optics.settings import OpticalSystem
from refocus.optics.transfer import RoundTransfer, interpolate

#: Geometric blur radii. A rung serves 3% around it; an inverse filter that is 7% off loses under half a decibel.
RADII_PX: tuple[float, ...] = tuple(1.0 * 1.06**rung for rung in range(64))
#: ``pixel size NA / wavelength``: 0.25 samples the cutoff exactly, 0.46 is a 20x 0.75 objective on 6.5 um pixels.
SAMPLINGS: tuple[float, ...] = (0.18, 0.26, 0.36, 0.48, 0.66)
FREQUENCIES = 513
_APERTURE, _WAVELENGTH_UM = 0.75, 0.525


@dataclass(frozen=True, slots=True)
class BlurLadder:
    """Transfer functions of a dry objective, from frequency 0 to Nyquist.

    Attributes
    ----------
    defocused : Tensor, float32, shape [samplings, radii, FREQUENCIES]
        By :data:`SAMPLINGS`, :data:`RADII_PX` and frequencies from 0 to 0.5 cycles per pixel.
    in_focus : Tensor, float32, shape [samplings, FREQUENCIES]
    """

    defocused: Tensor
    in_focus: Tensor


def cycles_per_px() -> Tensor:
    """Frequencies of the ladder's columns, float32, shape [FREQUENCIES]."""
    return torch.linspace(0.0, 0.5, FREQUENCIES)


@lru_cache(maxsize=1)
def blur_ladder() -> BlurLadder:
    """Compute the ladder once a process; takes a fraction of a second."""
    tables = RoundTransfer.reaching(2.0 * math.pi * SAMPLINGS[-1] * RADII_PX[-1])
    squared = tables.pupil_rho_squared
    cosine = (1.0 - squared * _APERTURE**2).sqrt()
    defocused, in_focus = [], []
    for sampling in SAMPLINGS:
        pixel_um = sampling * _WAVELENGTH_UM / _APERTURE
        system = OpticalSystem(numerical_aperture=_APERTURE, wavelength_um=_WAVELENGTH_UM, pixel_size_um=pixel_um)
        z_um = torch.tensor([0.0, *(system.defocus_um_for(radius) for radius in RADII_PX)])
        waves = z_um[:, None] * (cosine - 1.0) / _WAVELENGTH_UM
        transfer = tables(torch.ones_like(waves), waves)
        position = cycles_per_px()[None] / sampling / tables.frequency_step
        sampled = interpolate(transfer, position.expand(len(transfer), -1))
        in_focus.append(sampled[0])
        defocused.append(sampled[1:])
    return BlurLadder(torch.stack(defocused), torch.stack(in_focus))
