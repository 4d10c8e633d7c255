"""Transfer functions of round pupils, hundreds at a time: two matrix products instead of a Fourier transform each.

A pupil without angular detail (defocus, spherical aberration of all orders) has a round PSF, so field and transfer
function are Hankel transforms of a line. In the optical unit ``v = 2 pi NA r / wavelength`` the Bessel functions are
the same for every objective: they are tabulated once, and each transfer function is a column of a matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RoundTransfer:
    """Tables for transfer functions of round pupils up to a given blur.

    Build with :meth:`reaching`. Rows run over samples of the field or of frequency, columns over what is summed.
    """

    pupil_rho_squared: Tensor
    pupil_weight: Tensor
    field_from_pupil: Tensor
    transfer_from_intensity: Tensor
    frequency_step: float

    @classmethod
    def reaching(
        cls, largest_blur: float, *, steepest_pupil: float | None = None, device: torch.device | str | None = None
    ) -> RoundTransfer:
        """Tabulate for geometric radii up to `largest_blur`, in optical units ``2 pi NA r / wavelength``.

        `steepest_pupil` is the radius that the pupil's own edge would have; it is larger where a condenser narrower
        than the objective lights only the pupil's centre.
        """
        reach = 1.2 * largest_blur + 60.0
        step = 0.5
        # Gauss-Legendre needs somewhat more than half a node a radian of phase between centre and edge.
        nodes = 64 + 16 * math.ceil(0.6 * (reach + max(largest_blur, steepest_pupil or 0.0)) / 16)
        squared, weights = gauss_legendre(nodes)
        optical = torch.arange(0.0, reach, step, dtype=torch.float64)
        field = torch.special.bessel_j0(optical[:, None] * squared.sqrt()) * (0.5 * weights)
        # The transfer function of a disc of radius v oscillates with period 2 pi / v in s = frequency wavelength / NA.
        samples = 256 * math.ceil(2.0 * 16.0 * max(largest_blur, 16.0) / (2.0 * math.pi) / 256) + 1
        frequency = torch.linspace(0.0, 2.0, samples, dtype=torch.float64)
        area = optical * step
        # Trapezoid over an odd integrand: the first Euler-Maclaurin term belongs to the sample at the centre.
        area[0] = step * step / 12.0
        # A raised-cosine end stands for the light beyond the table and keeps the cut from ringing.
        fade = (0.5 - 0.5 * torch.cos(math.pi * ((reach - optical) / (0.12 * reach)).clamp(0.0, 1.0))) * area
        transfer = torch.special.bessel_j0(frequency[:, None] * optical) * fade
        return cls(
            pupil_rho_squared=squared.to(device, torch.float32),
            pupil_weight=(0.5 * weights).to(device, torch.float32),
            field_from_pupil=field.to(device, torch.float32),
            transfer_from_intensity=transfer.to(device, torch.float32),
            frequency_step=2.0 / (samples - 1),
        )

    def __call__(self, amplitude: Tensor, waves: Tensor, source: Tensor | None = None) -> Tensor:
        """Transfer functions of pupils sampled at ``sqrt(pupil_rho_squared)``.

        Parameters
        ----------
        amplitude, waves : Tensor, shape [M, nodes]
            Modulus, and phase in waves.
        source : Tensor, shape [M, nodes], optional
            Intensity that the condenser sends through each pupil point. Without it light is incoherent.

        Returns
        -------
        Tensor, shape [M, samples]
            1 at frequency 0, over ``s = frequency wavelength / NA`` from 0 to 2 in steps of `frequency_step`. Real
            for incoherent light. With a source complex: the transmission cross-coefficient ``C(s, 0)``, the
            correlation of source times pupil with the pupil; see :mod:`refocus.optics.brightfield`.
        """
        # Autocast would round phases of hundreds of radians to eight bits.
        with torch.autocast(amplitude.device.type, enabled=False):
            phase = (2.0 * math.pi) * waves
            cosine, sine = amplitude * torch.cos(phase), amplitude * torch.sin(phase)
            real, imaginary = cosine @ self.field_from_pupil.T, sine @ self.field_from_pupil.T
            # Parseval: all light that passes the pupil, with what lies beyond the table.
            light = amplitude * amplitude
            if source is None:
                product = real * real + imaginary * imaginary
                total = light @ self.pupil_weight
                transfer = (product @ self.transfer_from_intensity.T) / total[:, None]
            else:
                lit_real = (source * cosine) @ self.field_from_pupil.T
                lit_imaginary = (source * sine) @ self.field_from_pupil.T
                total = (source * light) @ self.pupil_weight
                kept = (lit_real * real + lit_imaginary * imaginary) @ self.transfer_from_intensity.T
                turned = (lit_real * imaginary - lit_imaginary * real) @ self.transfer_from_intensity.T
                transfer = torch.complex(kept, turned) / total[:, None]
        return torch.cat([torch.ones_like(transfer[:, :1]), transfer[:, 1:]], dim=1)


def gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], by the eigenvalues of the Jacobi matrix (Golub and Welsch 1969)."""
    k = torch.arange(1, nodes, dtype=torch.float64)
    off = k / (4.0 * k * k - 1.0).sqrt()
    matrix = torch.diag(off, 1) + torch.diag(off, -1)
    positions, vectors = torch.linalg.eigh(matrix)
    return (positions + 1.0) / 2.0, vectors[0] ** 2


def source_disc(rho_squared: Tensor, ratio: Tensor) -> Tensor:
    """A condenser's aperture over the pupil, shape [M, N]: 1 within `ratio` [M] of its radius, with a soft rim.

    The rim is as wide as real condenser diaphragms are out of focus in the pupil, and lets quadrature converge. At
    ratio 1 the source fills the pupil evenly.
    """
    rim = 0.06
    rho = rho_squared.sqrt()
    inside = ((ratio[:, None] - rho) / rim + 0.5).clamp(0.0, 1.0)
    smooth = inside * inside * (3.0 - 2.0 * inside)
    return torch.where(ratio[:, None] >= 1.0, torch.ones_like(smooth), smooth)


def interpolate(table: Tensor, position: Tensor) -> Tensor:
    """Read rows of `table` at fractional positions, linearly; beyond the last sample 0.

    Parameters
    ----------
    table : Tensor, shape [M, samples]
    position : Tensor, shape [M, N]
        In samples, not negative.

    Returns
    -------
    Tensor, shape [M, N]
    """
    last = table.shape[1] - 1
    lower = position.floor().clamp(max=last - 1)
    fraction = (position - lower).clamp(max=1.0)
    index = lower.to(torch.int64)
    value = torch.lerp(table.gather(1, index), table.gather(1, index + 1), fraction)
    return torch.where(position <= last, value, torch.zeros_like(value))
