"""Stained specimens in transmitted light: Beer-Lambert absorption, and a condenser that fills part of the pupil.

**Absorption.** Intensity behind stains of amount d_i is ``10 ** -sum(e_i(wavelength) d_i)``; e_i are absorbances a unit
stain takes at each wavelength (A. C. Ruifrok and D. A. Johnston, Anal. Quant. Cytol. Histol. 23, 291 (2001) for
haematoxylin and eosin).

**Defocus.** Light is lost linearly: each slab k takes ``D_k = (1 - T) A_k / A`` of the lamp, its share of the whole
loss by absorbance, and the image is ``1 - sum_k K_k * D_k`` with the transfer K_k of the slab's own distance. That is
exact for a section thin against the depth of field (all K equal), exact to first order for weak stains at any
thickness, keeps the total light, and never leaves [0, 1] where the kernels are positive. It ignores that a dense object
in front of another shades it at a slant: absorbance above 1 that overlaps at distances beyond the depth of field.

**Partial coherence.** A condenser of aperture sigma NA lights the pupil's inner disc. A weak absorber is then imaged
with the weak-object transfer function ``Re C(f)``, and a weak phase object with ``-2 Im C(f)``,

    C(f) = integral S(u) P(u + f) conj(P(u)) du / integral S(u) |P(u)|^2 du

(H. H. Hopkins, Proc. R. Soc. A 217, 408 (1953); N. Streibl, J. Opt. Soc. Am. A 2, 121 (1985)). At sigma = 1 Re C is the
incoherent transfer function and Im C vanishes: the usual convolution. Smaller sigma deepens the field (the blur's
radius follows the condenser) and makes refraction visible out of focus. Valid for local absorbance up to about 0.5;
above, the bilinear terms left out make dark structure a little too contrasted. Refraction is off unless asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refocus.errors import InputError
from refocus.optics.formation import Boundary, Transfer, psf_transfer, volume
from refocus.optics.pupil import ROUND, PupilBatch, aberration_waves, amplitude, defocus_waves
from refocus.optics.settings import RGB_WAVELENGTHS_UM, OpticalSystem
from refocus.optics.transfer import RoundTransfer, interpolate, source_disc


@dataclass(frozen=True, slots=True)
class Stain:
    """A dye by the absorbance that one unit of it takes at red, green and blue."""

    name: str
    absorbance_rgb: tuple[float, float, float]


#: Normalised optical densities: haematoxylin of Ruifrok and Johnston, eosin as QuPath has it by default
#: (Ruifrok's own, 0.072 0.990 0.105, is the pure dye and pinker than sections are).
HAEMATOXYLIN = Stain("haematoxylin", (0.650, 0.704, 0.286))
EOSIN = Stain("eosin", (0.2159, 0.8012, 0.5581))


def transmission(amounts: Tensor, stains: Sequence[Stain]) -> Tensor:
    """Share of light behind the stains, by Beer-Lambert's law.

    Parameters
    ----------
    amounts : Tensor, shape [..., S, H, W]
        Amount of each stain, not negative.
    stains : sequence of S Stain

    Returns
    -------
    Tensor, shape [..., 3, H, W]
        In (0, 1]; differentiable.
    """
    return torch.pow(10.0, -absorbance(amounts, stains))


def absorbance(amounts: Tensor, stains: Sequence[Stain]) -> Tensor:
    """Decadic absorbance [..., 3, H, W] of stain amounts [..., S, H, W]."""
    if amounts.ndim < 3 or amounts.shape[-3] != len(stains):
        raise InputError(f"amounts have shape {tuple(amounts.shape)}; expected [..., {len(stains)}, H, W].")
    matrix = torch.tensor([s.absorbance_rgb for s in stains], device=amounts.device, dtype=amounts.dtype)
    return torch.einsum("...shw,sc->...chw", amounts, matrix)


def weak_object_transfer(
    system: OpticalSystem, condenser_na: float, defocus_um: Tensor, frequency_per_um: Tensor
) -> tuple[Tensor, Tensor]:
    """How weak absorption and weak phase reach the image, over spatial frequency.

    Parameters
    ----------
    system : OpticalSystem
        Only round aberrations count: spherical orders and index mismatch.
    condenser_na : float
        From the objective's aperture on, light counts as incoherent.
    defocus_um : Tensor, shape [D]
    frequency_per_um : Tensor, any shape
        Radial spatial frequency, in cycles per um.

    Returns
    -------
    absorption : Tensor, shape [D, ...]
        Relative loss of intensity a relative loss in the specimen; 1 at frequency 0.
    phase : Tensor, shape [D, ...]
        Relative gain of intensity a radian of phase; 0 in focus, odd in defocus.

    Raises
    ------
    InputError
        If the system has aberrations without round symmetry, or the condenser is closed.
    """
    if condenser_na <= 0:
        raise InputError(f"condenser_na is {condenser_na}; expected more than 0 (coherent light is not modelled).")
    pupil = PupilBatch.of([system], device=defocus_um.device)
    if not pupil.is_round:
        raise InputError(
            f"zernike_waves has Noll {sorted(set(pupil.noll) - set(ROUND))}, which are not round; give round ones, "
            "or a condenser as wide as the objective."
        )
    ratio = min(1.0, condenser_na / system.numerical_aperture)
    farthest = defocus_um.detach().abs().max().item()
    used = system.model_copy(update={"numerical_aperture": ratio * system.numerical_aperture})
    to_optical = 2.0 * math.pi * system.numerical_aperture / system.wavelength_um * system.pixel_size_um
    table = RoundTransfer.reaching(
        to_optical * used.blur_radius_px(farthest),
        steepest_pupil=to_optical * system.blur_radius_px(farthest),
        device=defocus_um.device,
    )
    squared = table.pupil_rho_squared
    fixed = aberration_waves(squared.sqrt(), torch.zeros_like(squared), pupil)
    waves = defocus_um.to(torch.float32)[:, None] * defocus_waves(squared, pupil) + fixed
    modulus = amplitude(squared, pupil).expand_as(waves)
    cross = table(modulus, waves, source_disc(squared, torch.tensor([ratio], device=squared.device)).expand_as(waves))
    place = frequency_per_um * (system.wavelength_um / system.numerical_aperture) / table.frequency_step
    flat = place.reshape(1, -1).to(torch.float32).expand(len(cross), -1)
    shape = (len(cross), *frequency_per_um.shape)
    return interpolate(cross.real, flat).reshape(shape), -2.0 * interpolate(cross.imag, flat).reshape(shape)


def condenser_transfer(system: OpticalSystem, condenser_na: float, *, phase_per_absorbance: float = 0.0) -> Transfer:
    """Transfer of intensity losses on a grid of pixels, for :func:`refocus.optics.formation.volume`.

    Parameters
    ----------
    system : OpticalSystem
    condenser_na : float
        From the objective's aperture on, the widefield PSF's own transfer is returned.
    phase_per_absorbance : float
        Radians of phase that come with a loss of 1 (refraction of the stained structure); 0 for a specimen mounted in a
        medium of its own index. Shows only with a condenser narrower than the objective.
    """
    if condenser_na >= system.numerical_aperture:
        return psf_transfer(system)

    def transfer(defocus_um: Tensor, shape: tuple[int, int]) -> Tensor:
        down = torch.fft.fftfreq(shape[0], device=defocus_um.device)
        across = torch.fft.rfftfreq(shape[1], device=defocus_um.device)
        per_um = (down[:, None] ** 2 + across**2).sqrt() / system.pixel_size_um
        loss, phase = weak_object_transfer(system, condenser_na, defocus_um, per_um)
        # A phase brightens where a loss darkens.
        return (loss - phase_per_absorbance * phase) * (torch.sinc(down)[:, None] * torch.sinc(across))

    return transfer


def stained_volume(
    amounts: Tensor,
    stains: Sequence[Stain],
    system: OpticalSystem,
    focus_um: Tensor,
    *,
    slice_um: float,
    condenser_na: float | None = None,
    wavelengths_um: tuple[float, float, float] = RGB_WAVELENGTHS_UM,
    phase_per_absorbance: float = 0.0,
    boundary: Boundary = "mirror",
) -> Tensor:
    """Focal series of a stained section in transmitted light.

    Parameters
    ----------
    amounts : Tensor, shape [Z, S, H, W]
        Amount of each stain in each slice.
    stains : sequence of S Stain
    system : OpticalSystem
        Its wavelength is replaced by each colour's.
    focus_um : Tensor, shape [P]
        Where each plane is focused, counted from slice 0.
    slice_um : float
    condenser_na : float, optional
        The objective's aperture where not given.
    wavelengths_um : (red, green, blue)
    phase_per_absorbance : float
    boundary : {'mirror', 'dark', 'periodic'}

    Returns
    -------
    Tensor, shape [P, 3, H, W]
        Share of the lamp's light; differentiable in `amounts`.
    """
    if amounts.ndim != 4:
        raise InputError(f"amounts have shape {tuple(amounts.shape)}; expected [Z, S, H, W].")
    slabs = absorbance(amounts, stains)
    whole = slabs.sum(0)
    # (1 - 10^-A) / A, with its limit where nothing absorbs.
    share = torch.where(whole > 1e-6, -torch.expm1(-math.log(10.0) * whole) / whole.clamp_min(1e-6), math.log(10.0))
    losses = slabs * share
    aperture = condenser_na if condenser_na is not None else system.numerical_aperture
    colours = []
    for colour, wavelength in enumerate(wavelengths_um):
        optics = system.model_copy(update={"wavelength_um": wavelength})
        transfer = condenser_transfer(optics, aperture, phase_per_absorbance=phase_per_absorbance)
        lost = volume(losses[:, colour], optics, focus_um, slice_um=slice_um, boundary=boundary, transfer=transfer)
        colours.append(1.0 - lost)
    return torch.stack(colours, 1).clamp_min(0.0)
