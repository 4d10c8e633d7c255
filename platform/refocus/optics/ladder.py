"""A ladder of blurs: transfer functions for every geometric radius and objective that an image may have.

Seen from the pixels, a defocused objective has three numbers: the geometric radius of its blur, which sets where the
transfer function's zeros lie; how finely the pixels sample its resolution, which bends them; and its aperture, since
steep rays spread light unevenly over the disc. Whoever does not know the optics of an image can climb this ladder for
a few profiles and look which rung fits; whoever knows them climbs the nearest one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from refocus.optics.settings import OpticalSystem
from refocus.optics.transfer import RoundTransfer, interpolate

#: Of neighbouring radii. What is 7% off loses half a decibel by a linear filter, 2 dB by many steps of deconvolution.
RUNG_RATIO = 1.06
#: Geometric blur radii.
RADII_PX: tuple[float, ...] = tuple(RUNG_RATIO**rung for rung in range(64))
#: Radii between two rungs are counted in so many parts of the way, so that last bits make no difference.
RUNG_SHARES = 64
FREQUENCIES = 1025
_WAVELENGTH_UM = 0.525


class Profile(NamedTuple):
    """What bends an objective's transfer function, whatever its blur.

    Attributes
    ----------
    sampling : float
        ``pixel size NA / wavelength``: 0.25 samples the cutoff exactly, 0.46 is a 20x 0.75 objective on 6.5 um pixels.
    numerical_aperture : float
        Dry.
    """

    sampling: float
    numerical_aperture: float


PROFILES: tuple[Profile, ...] = tuple(
    Profile(sampling, aperture) for aperture in (0.4, 0.75, 0.6, 0.88, 0.95) for sampling in (0.18, 0.27, 0.4, 0.6)
)
#: Those that are told apart without knowing the optics: NA 0.4, 0.75 and 0.88.
BLIND_PROFILES = (0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15)
#: Of pixels that may be an objective's own: not more than twice as fine or coarse as any profile's.
OWN_SAMPLING = (0.5 * min(p.sampling for p in PROFILES), 2.0 * max(p.sampling for p in PROFILES))
#: How much more a factor in sampling counts than one in the rim's steepness.
_SAMPLING_COUNTS = 2.0


@dataclass(frozen=True, slots=True)
class BlurLadder:
    """Transfer functions of dry objectives, from frequency 0 to Nyquist.

    Attributes
    ----------
    defocused : Tensor, float32, shape [profiles, radii, FREQUENCIES]
        By :data:`PROFILES`, :data:`RADII_PX` and frequencies from 0 to 0.5 cycles per pixel.
    in_focus : Tensor, float32, shape [profiles, FREQUENCIES]
    """

    defocused: Tensor
    in_focus: Tensor


def nearest_profile(system: OpticalSystem) -> int | None:
    """Number of the profile that is most like an objective with its light and its pixels.

    None where pixels are beyond `OWN_SAMPLING`: then they are not the image's own.

    Examples
    --------
    >>> PROFILES[nearest_profile(OpticalSystem(numerical_aperture=0.9, wavelength_um=0.525, pixel_size_um=0.16))]
    Profile(sampling=0.27, numerical_aperture=0.88)
    """
    sampling = system.pixel_size_um * system.numerical_aperture / system.wavelength_um
    if not OWN_SAMPLING[0] < sampling < OWN_SAMPLING[1]:
        return None
    sine = system.numerical_aperture / system.refractive_index
    return int(nearest_profiles(torch.tensor([sampling]), torch.tensor([sine]))[0])


def nearest_profiles(sampling: Tensor, sine: Tensor) -> Tensor:
    """Numbers of the profiles nearest to samplings and to sines of the marginal rays, int64, of their shape."""
    known = torch.tensor(PROFILES, device=sampling.device)
    finer = (sampling[..., None].log() - known[:, 0].log()).abs()
    steeper = (sine[..., None].atanh() - known[:, 1].atanh()).abs()
    return (_SAMPLING_COUNTS * finer + steeper).argmin(-1)


def widened(transfer: Tensor, factor: float | Tensor) -> Tensor:
    """Transfer functions [..., FREQUENCIES] of a blur that is so many times as wide, or [..., 1] times: drawn together.

    Exact for the geometric part of a blur; neighbouring rungs give one another back to a fifth of their difference.
    """
    columns = transfer.shape[-1]
    place = (factor * torch.arange(columns, device=transfer.device)).clamp(max=columns - 1)
    lower = place.floor().to(torch.int64).clamp(max=columns - 2)
    below, above = (transfer.gather(-1, at.expand_as(transfer)) for at in (lower, lower + 1))
    return torch.lerp(below, above, place - lower)


def cycles_per_px() -> Tensor:
    """Frequencies of the ladder's columns, float32, shape [FREQUENCIES]."""
    return torch.linspace(0.0, 0.5, FREQUENCIES)


@lru_cache(maxsize=1)
def blur_ladder() -> BlurLadder:
    """Compute the ladder once a process; takes a fraction of a second."""
    tables = RoundTransfer.reaching(2.0 * math.pi * max(p.sampling for p in PROFILES) * RADII_PX[-1])
    squared = tables.pupil_rho_squared
    defocused, in_focus = [], []
    for sampling, aperture in PROFILES:
        system = OpticalSystem(
            numerical_aperture=aperture,
            wavelength_um=_WAVELENGTH_UM,
            pixel_size_um=sampling * _WAVELENGTH_UM / aperture,
        )
        cosine = (1.0 - squared * aperture**2).sqrt()
        z_um = torch.tensor([0.0, *(system.defocus_um_for(radius) for radius in RADII_PX)])
        waves = z_um[:, None] * (cosine - 1.0) / _WAVELENGTH_UM
        transfer = tables(torch.ones_like(waves), waves)
        position = cycles_per_px()[None] / sampling / tables.frequency_step
        sampled = interpolate(transfer, position.expand(len(transfer), -1))
        in_focus.append(sampled[0])
        defocused.append(sampled[1:])
    return BlurLadder(torch.stack(defocused), torch.stack(in_focus))
