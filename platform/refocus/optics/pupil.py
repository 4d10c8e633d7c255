"""The light in the objective's back aperture: amplitude and phase, on any coordinates, batched.

Pupil coordinates are normalised: the aperture is the unit disc, ``rho = k_perp / (2 pi NA / wavelength)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refocus.errors import InputError
from refocus.optics.settings import OpticalSystem


@dataclass(frozen=True, slots=True)
class PupilBatch:
    """The numbers of several systems side by side, each a tensor of shape [B].

    The tensors may require gradients. `zernike_waves` is [B, M] and belongs to `noll`, its M indices.
    `mismatch` is one layer a row of [B, L, 2]: (thickness in um, refractive index) of what the light crosses
    beyond the design (coverslip error, depth in a medium of another index).
    """

    numerical_aperture: Tensor
    wavelength_um: Tensor
    pixel_size_um: Tensor
    refractive_index: Tensor
    noll: tuple[int, ...]
    zernike_waves: Tensor
    mismatch: Tensor
    aplanatic: Tensor

    @classmethod
    def of(
        cls,
        systems: Sequence[OpticalSystem],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> PupilBatch:
        """Stack `systems` into tensors."""
        if not systems:
            raise InputError("no optical system was given; expected at least one.")

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device, dtype=dtype)

        terms = [{11: s.spherical_waves} if s.spherical_waves else {} for s in systems]
        for term, system in zip(terms, systems, strict=True):
            for index, waves in system.zernike_waves:
                term[index] = term.get(index, 0.0) + waves
        noll = tuple(sorted({index for term in terms for index in term}))
        rows = [[term.get(index, 0.0) for index in noll] for term in terms]
        layers = [
            [
                [s.coverslip_error_um, s.coverslip_index],
                [s.specimen_depth_um, s.specimen_index if s.specimen_index is not None else s.refractive_index],
            ]
            for s in systems
        ]
        return cls(
            numerical_aperture=column([s.numerical_aperture for s in systems]),
            wavelength_um=column([s.wavelength_um for s in systems]),
            pixel_size_um=column([s.pixel_size_um for s in systems]),
            refractive_index=column([s.refractive_index for s in systems]),
            noll=noll,
            zernike_waves=torch.tensor(rows, device=device, dtype=dtype).reshape(len(systems), len(noll)),
            mismatch=torch.tensor(layers, device=device, dtype=dtype),
            aplanatic=torch.tensor([s.apodisation == "aplanatic" for s in systems], device=device),
        )

    @property
    def is_round(self) -> bool:
        """Whether no system has aberrations with angular detail."""
        return set(self.noll) <= set(ROUND)

    def row(self, index: int) -> PupilBatch:
        """One system as a batch of one."""
        at = slice(index, index + 1)
        return PupilBatch(
            numerical_aperture=self.numerical_aperture[at],
            wavelength_um=self.wavelength_um[at],
            pixel_size_um=self.pixel_size_um[at],
            refractive_index=self.refractive_index[at],
            noll=self.noll,
            zernike_waves=self.zernike_waves[at],
            mismatch=self.mismatch[at],
            aplanatic=self.aplanatic[at],
        )


#: Zernike terms without angular detail, by Noll index.
ROUND = (4, 11, 22, 37, 56)


def cosine(rho_squared: Tensor, numerical_aperture: Tensor, refractive_index: Tensor) -> Tensor:
    """``cos(theta)`` of the ray through each pupil point, 0 beyond the evanescent limit; shapes broadcast."""
    return (1.0 - rho_squared * (numerical_aperture / refractive_index) ** 2).clamp_min(0.0).sqrt()


def defocus_waves(rho_squared: Tensor, pupil: PupilBatch) -> Tensor:
    """Phase of one micrometre of defocus, in waves, zero at the pupil's centre, shape [B, ...].

    ``n (cos(theta) - 1) / wavelength``: exact for any NA, where the paraxial form keeps only ``rho^2``.
    """
    extra = (1,) * rho_squared.ndim
    na, n, wavelength = (
        value.reshape(-1, *extra) for value in (pupil.numerical_aperture, pupil.refractive_index, pupil.wavelength_um)
    )
    return n * (cosine(rho_squared, na, n) - 1.0) / wavelength


def zernike(noll_index: int, rho: Tensor, azimuth: Tensor) -> Tensor:
    """Zernike polynomial of unit RMS over the unit disc.

    Source: R. J. Noll, "Zernike polynomials and atmospheric turbulence", J. Opt. Soc. Am. 66, 207 (1976).

    Parameters
    ----------
    noll_index : int
        From 1 (piston).
    rho, azimuth : Tensor
        Polar coordinates in the pupil; outside the disc the polynomial is continued.
    """
    order = int((math.sqrt(8 * noll_index - 7) - 1) / 2)
    rank = noll_index - order * (order + 1) // 2 - 1
    frequency = order % 2 + 2 * ((rank + (order + 1) % 2) // 2)
    radial = torch.zeros_like(rho)
    for k in range((order - frequency) // 2 + 1):
        radial = radial + (
            (-1) ** k
            * math.factorial(order - k)
            / (
                math.factorial(k)
                * math.factorial((order + frequency) // 2 - k)
                * math.factorial((order - frequency) // 2 - k)
            )
        ) * rho ** (order - 2 * k)
    if frequency == 0:
        return math.sqrt(order + 1) * radial
    turn = torch.cos(frequency * azimuth) if noll_index % 2 == 0 else torch.sin(frequency * azimuth)
    return math.sqrt(2 * (order + 1)) * radial * turn


def mismatch_waves(rho_squared: Tensor, pupil: PupilBatch) -> Tensor:
    """Aberration of layers that the objective was not designed for, in waves, at best focus.

    The path through a layer of thickness d and index m is ``d sqrt(m^2 - NA^2 rho^2)`` (Gibson and Lanni 1992).
    What a focus drive can undo (a constant and exact defocus, least squares over the pupil) is taken out, so that
    defocus still counts from the best plane.

    Parameters
    ----------
    rho_squared : Tensor, shape [N] or [H, W]
    pupil : PupilBatch

    Returns
    -------
    Tensor, shape [B, N] or [B, H, W]
    """
    extra = (1,) * rho_squared.ndim
    na, n, wavelength = (
        v.reshape(-1, *extra) for v in (pupil.numerical_aperture, pupil.refractive_index, pupil.wavelength_um)
    )

    def path(r2: Tensor, tail: tuple[int, ...]) -> Tensor:
        na_squared = pupil.numerical_aperture.reshape(-1, 1, *tail) ** 2
        thickness, index = (pupil.mismatch[..., i].reshape(*pupil.mismatch.shape[:2], *tail) for i in (0, 1))
        return (thickness * ((index**2 - na_squared * r2).clamp_min(0.0).sqrt() - index)).sum(1)

    # The fit runs over uniform steps of rho^2, which weigh the disc's area evenly.
    area = (torch.arange(256, device=na.device, dtype=na.dtype) + 0.5) / 256
    along = path(area, (1,)) / wavelength.reshape(-1, 1)
    focus = n.reshape(-1, 1) * (cosine(area, na.reshape(-1, 1), n.reshape(-1, 1)) - 1.0) / wavelength.reshape(-1, 1)
    focus_mean, along_mean = focus.mean(1, keepdim=True), along.mean(1, keepdim=True)
    slope = ((along - along_mean) * (focus - focus_mean)).sum(1) / ((focus - focus_mean) ** 2).sum(1)
    bend = slope.reshape(-1, *extra) * n * (cosine(rho_squared, na, n) - 1.0) / wavelength
    return path(rho_squared, extra) / wavelength - bend


def aberration_waves(rho: Tensor, azimuth: Tensor, pupil: PupilBatch) -> Tensor:
    """Sum of all aberrations except defocus, in waves, shape [B, ...] over the coordinates' shape."""
    total = mismatch_waves(rho * rho, pupil)
    for column, index in enumerate(pupil.noll):
        waves = pupil.zernike_waves[:, column].reshape(-1, *(1,) * rho.ndim)
        total = total + waves * zernike(index, rho, azimuth)
    return total


def amplitude(rho_squared: Tensor, pupil: PupilBatch) -> Tensor:
    """Amplitude over the pupil, shape [B, ...], without the aperture's edge."""
    extra = (1,) * rho_squared.ndim
    na, n = (v.reshape(-1, *extra) for v in (pupil.numerical_aperture, pupil.refractive_index))
    weight = cosine(rho_squared.clamp(max=1.0), na, n).clamp_min(1e-3).rsqrt()
    return torch.where(pupil.aplanatic.reshape(-1, *extra), weight, torch.ones_like(weight))
