"""From photons to grey levels: shot noise, read noise, gain, offset, saturation, bit depth."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from refocus.errors import InputError
from refocus.optics.settings import PositiveFloat

#: Above this mean count the Cornish-Fisher form replaces exact Poisson numbers.
EXACT_BELOW = 16.0


class Camera(BaseModel):
    """A camera by what its data sheet says.

    Parameters
    ----------
    gain_adu_per_electron : float
        Grey levels (analogue-digital units, ADU) a photo-electron.
    offset_adu : float
        Grey level without light.
    read_noise_electrons : float
        RMS.
    full_well_electrons : float
        Where a pixel saturates.
    bit_depth : int
        1 to 16. Values end at ``2 ** bit_depth - 1``.
    quantum_efficiency : float
        Photo-electrons a photon.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gain_adu_per_electron: PositiveFloat = 0.5
    offset_adu: Annotated[float, Field(ge=0)] = 100.0
    read_noise_electrons: Annotated[float, Field(ge=0)] = 1.6
    full_well_electrons: PositiveFloat = 30000.0
    bit_depth: Annotated[int, Field(ge=1, le=16)] = 16
    quantum_efficiency: Annotated[float, Field(gt=0, le=1)] = 0.8

    def noise_free_adu(self, photons: Tensor) -> Tensor:
        """Expected grey levels of these photons before saturation and rounding; differentiable."""
        return photons * (self.quantum_efficiency * self.gain_adu_per_electron) + self.offset_adu

    def record(self, photons: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Grey levels, as whole numbers in `photons`' dtype.

        Parameters
        ----------
        photons : Tensor, any shape
            Expected photons a pixel, not negative.
        generator : torch.Generator, optional
            On the device of `photons`.

        Returns
        -------
        Tensor, same shape
            Whole numbers from 0 to ``2 ** bit_depth - 1``.
        """
        electrons = shot_noise(photons * self.quantum_efficiency, generator=generator)
        electrons = electrons.clamp(max=self.full_well_electrons)
        if self.read_noise_electrons > 0:
            electrons = electrons + self.read_noise_electrons * _normal_like(electrons, generator)
        adu = torch.round(electrons * self.gain_adu_per_electron + self.offset_adu)
        return adu.clamp(0.0, float(2**self.bit_depth - 1))


def _normal_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def shot_noise(
    mean_counts: Tensor, *, read_noise: Tensor | float | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Poisson counts, with Gaussian read noise where given.

    Counts of a mean below 16 are exact. Above, one normal number z gives
    ``mean + sqrt(mean - 1/18) z + (z^2 - 1) / 6`` (Cornish and Fisher 1938): mean and variance are those of the
    Poisson law exactly, the skewness to a few percent, at a fraction of the time, and the gradient towards the mean is
    defined. Such counts are not whole numbers: cameras round after the gain.

    Parameters
    ----------
    mean_counts : Tensor, any shape
        Expected counts, not negative.
    read_noise : Tensor or float, optional
        RMS in counts, broadcastable.
    generator : torch.Generator, optional
        On the device of `mean_counts`.

    Returns
    -------
    Tensor, same shape

    Raises
    ------
    InputError
        If a mean is negative or not finite (only checked on the CPU: a check elsewhere would wait for the device).
    """
    if mean_counts.device.type == "cpu" and mean_counts.numel():
        low, high = torch.aminmax(mean_counts.detach())
        if not (low >= 0 and torch.isfinite(high)):
            raise InputError(f"expected photons between {low:g} and {high:g}; they must be finite and not negative.")
    normal = _normal_like(mean_counts, generator)
    read = torch.zeros((), device=mean_counts.device) if read_noise is None else torch.as_tensor(read_noise)
    read_variance = (read * read).to(mean_counts)
    spread = (mean_counts - 1.0 / 18.0).clamp_min(0.0) + read_variance
    # Read noise dilutes the skewness in proportion to its share of the variance.
    skewness = mean_counts / (mean_counts + read_variance).clamp_min(1e-12)
    counts = mean_counts + spread.sqrt() * normal + skewness * (normal * normal - 1.0) / 6.0
    few = mean_counts.detach() < EXACT_BELOW
    if mean_counts.device.type == "cpu":
        if not few.any():
            return counts
        exact = torch.poisson(mean_counts.detach()[few], generator=generator)
        noise = (read_variance.sqrt() * normal).expand_as(counts)[few]
        return counts.masked_scatter(few, exact + noise)
    exact = _poisson_of(few, mean_counts.detach(), generator)
    return torch.where(few, exact + read_variance.sqrt() * normal, counts)


def _poisson_of(few: Tensor, mean_counts: Tensor, generator: torch.Generator | None) -> Tensor:
    """Exact counts where there are few, others 0, for devices on which picking them out takes longer.

    What no Poisson rate can be counts as none: CUDA would end the process over it, not the step.
    """
    return torch.poisson(torch.where(few, mean_counts, 0.0).clamp_min(0.0), generator=generator)


def falling_power(frequency_per_px: Tensor, cutoff_per_px: Tensor | float, order: Tensor | float) -> Tensor:
    """Power of processed noise relative to white noise: ``exp(-(f / cutoff)^order)``.

    Parameters
    ----------
    frequency_per_px : Tensor
        In cycles per pixel.
    cutoff_per_px : Tensor or float
        In cycles per pixel, broadcastable.
    order : Tensor or float
        2 is a Gaussian filter's; the higher, the more abrupt. Broadcastable.
    """
    return torch.exp(-((frequency_per_px / cutoff_per_px) ** order))


def coloured(noise: Tensor, cutoff_per_px: Tensor | float, order: Tensor | float) -> Tensor:
    """White noise as smoothing, enlarging or compressing leave it: with `falling_power`.

    Parameters
    ----------
    noise : Tensor, float, shape [..., h, w]
    cutoff_per_px, order : Tensor or float
        Of `falling_power`, broadcastable to `noise`.

    Returns
    -------
    Tensor, shape of `noise`
    """
    height, width = noise.shape[-2:]
    down = torch.fft.fftfreq(height, device=noise.device, dtype=noise.dtype)
    across = torch.fft.rfftfreq(width, device=noise.device, dtype=noise.dtype)
    frequency = (down[:, None].square() + across.square()).sqrt()
    amplitude = falling_power(frequency, cutoff_per_px, order).sqrt()
    return torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(height, width))
