"""The widefield point spread function: what one bright point looks like on the camera."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from refocus.errors import InputError
from refocus.optics.pupil import PupilBatch, aberration_waves, amplitude, defocus_waves
from refocus.optics.settings import OpticalSystem
from refocus.optics.transfer import gauss_legendre


def fast_fft_length(at_least: int) -> int:
    """Smallest even length not below `at_least` whose prime factors are 2, 3 and 5."""
    length = max(2, at_least + at_least % 2)
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2


def oversampling_for(system: OpticalSystem) -> int:
    """How finely a pixel must be divided so that the intensity of the PSF is sampled without aliasing.

    The field reaches NA / wavelength, its squared modulus twice that: steps of ``wavelength / (4 NA)`` suffice.
    """
    return max(1, math.ceil(4.0 * system.numerical_aperture * system.pixel_size_um / system.wavelength_um))


def widefield_psf(
    system: OpticalSystem | Sequence[OpticalSystem],
    defocus_um: Tensor,
    *,
    size_px: int,
    oversampling: int | None = None,
    pixel_integration: bool = True,
) -> Tensor:
    """Intensity PSF of a scalar pupil at given distances from focus, integrated over the camera's pixels.

    The field is the Fourier transform of the pupil ``A(rho) exp(2 pi i W(rho))``, W holding the exact defocus
    ``z n (cos(theta) - 1) / wavelength``, Zernike terms and index mismatch; intensity is its squared modulus
    (J. W. Goodman, "Introduction to Fourier Optics", ch. 6; S. F. Gibson and F. Lanni, J. Opt. Soc. Am. A 8, 1601
    (1991) for the mismatch). A pupil without angular detail is transformed along its radius by Gauss-Legendre
    quadrature, any other by a Fourier transform over a window three times the blur's reach. Intensity is formed on a
    grid fine enough for its band, then box-integrated over pixels, exactly, as a product with sinc in the Fourier
    domain.

    Accuracy at NA 0.75 against dense quadrature, relative to the peak: 1e-4 for round pupils; up to 1e-2 at 6 um for
    others, from the light that comes round the periodic window.

    Valid as far as a scalar field is: against vectorial theory widths differ by 2 to 8% at NA 0.75 to 0.95.

    Parameters
    ----------
    system : OpticalSystem or sequence of B of them
        One for all distances, or one each.
    defocus_um : Tensor, shape [B]
        Signed distance of the plane from best focus. Its device and dtype are the result's. Gradients flow.
    size_px : int
        Side K of the result, in camera pixels; the peak of an unaberrated PSF lies at ``K // 2``.
    oversampling : int, optional
        Sub-pixels a side; chosen from the band where not given.
    pixel_integration : bool
        False samples the intensity at pixel centres instead.

    Returns
    -------
    Tensor, shape [B, K, K]
        Non-negative up to rounding; each sums to 1.

    Raises
    ------
    InputError
        If the number of systems is neither 1 nor B, or `size_px` is not positive.
    """
    if defocus_um.ndim != 1 or not defocus_um.is_floating_point():
        raise InputError(f"defocus_um has shape {tuple(defocus_um.shape)} and {defocus_um.dtype}; expected float [B].")
    if size_px < 1:
        raise InputError(f"size_px is {size_px}; expected at least 1.")
    systems = [system] if isinstance(system, OpticalSystem) else list(system)
    if len(systems) not in (1, len(defocus_um)):
        raise InputError(f"{len(systems)} systems for {len(defocus_um)} distances; expected one for all or one each.")
    steps = oversampling if oversampling is not None else max(oversampling_for(s) for s in systems)
    pupil = PupilBatch.of(systems, device=defocus_um.device, dtype=defocus_um.dtype)

    farthest = defocus_um.detach().abs().max().item() if len(defocus_um) else 0.0
    if pupil.is_round:
        window = fast_fft_length(size_px + 4)
        parts = [
            _round_intensity(pupil.row(i), d, window, steps, systems[i].blur_radius_px(farthest))
            for i, d in enumerate([defocus_um] if len(systems) == 1 else torch.split(defocus_um, 1))
        ]
    else:
        reach = max(s.blur_radius_px(farthest) + 8.0 * s.airy_radius_um / s.pixel_size_um for s in systems)
        window = fast_fft_length(max(2 * size_px, math.ceil(3.0 * reach) + 8))
        parts = [
            _any_intensity(pupil.row(i), d, window, steps)
            for i, d in enumerate([defocus_um] if len(systems) == 1 else torch.split(defocus_um, 1))
        ]
    fine = torch.cat(parts)

    spectrum = torch.fft.rfft2(fine)
    if pixel_integration:
        side = window * steps
        # torch.sinc is sin(pi x) / (pi x): a box one pixel wide, whose first zero is one cycle per pixel.
        down = torch.sinc(torch.fft.fftfreq(side, 1.0 / steps, device=fine.device, dtype=fine.dtype))
        across = torch.sinc(torch.fft.rfftfreq(side, 1.0 / steps, device=fine.device, dtype=fine.dtype))
        spectrum = spectrum * (down[:, None] * across)
    pixels = torch.fft.irfft2(spectrum, s=fine.shape[-2:])[:, ::steps, ::steps]
    shift = size_px // 2
    picked = (torch.arange(size_px, device=fine.device) - shift) % window
    cropped = pixels[:, picked][:, :, picked].clamp_min(0.0)
    return cropped / cropped.sum((-2, -1), keepdim=True)


def _round_intensity(pupil: PupilBatch, defocus_um: Tensor, window: int, steps: int, blur_px: float) -> Tensor:
    """Intensity [D, N, N] of a pupil without angular detail, sample 0 at the centre, `steps` samples a pixel.

    The radial field is a quadrature over ``rho^2``; its squared modulus is read at each sample by cubic interpolation.
    """
    device, dtype = defocus_um.device, defocus_um.dtype
    half = window * steps // 2
    optical_per_px = 2.0 * math.pi * float(pupil.numerical_aperture * pupil.pixel_size_um / pupil.wavelength_um)
    reach = optical_per_px * (half + 1) / steps * math.sqrt(2.0)
    nodes = 64 + 16 * math.ceil(0.6 * (reach + optical_per_px * blur_px) / 16)
    squared, weights = gauss_legendre(nodes)
    # Intensity repeats no faster than every pi in the optical unit: 12 samples of that, read by cubics.
    spacing = math.pi / 12.0
    radii = torch.arange(math.ceil(reach / spacing) + 4, dtype=torch.float64) * spacing
    field = torch.special.bessel_j0(radii[:, None] * squared.sqrt()) * weights
    table = field.to(device, dtype)
    rho_squared = squared.to(device, dtype)
    fixed = aberration_waves(rho_squared.sqrt(), torch.zeros_like(rho_squared), pupil)
    waves = defocus_um[:, None] * defocus_waves(rho_squared, pupil) + fixed
    modulus = amplitude(rho_squared, pupil)
    with torch.autocast(device.type, enabled=False):
        real = (modulus * torch.cos(2.0 * math.pi * waves)) @ table.T
        imaginary = (modulus * torch.sin(2.0 * math.pi * waves)) @ table.T
    profile = real * real + imaginary * imaginary

    # One quarter holds all; mirrored below zero the profile is even, so cubics need no end condition.
    side = torch.arange(half + 1, device=device, dtype=dtype) * (optical_per_px / steps / spacing)
    place = (side[:, None] ** 2 + side**2).sqrt()
    lower = place.floor()
    t = place - lower
    index = lower.to(torch.int64)
    cubics = (
        ((-0.5 * t + 1.0) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1.0,
        ((-1.5 * t + 2.0) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )
    quarter = sum(profile[:, (index + k - 1).abs()] * weight for k, weight in enumerate(cubics))
    assert isinstance(quarter, Tensor)
    fold = torch.arange(window * steps, device=device)
    fold = torch.minimum(fold, window * steps - fold)
    return quarter[:, fold][:, :, fold]


def _any_intensity(pupil: PupilBatch, defocus_um: Tensor, window: int, steps: int) -> Tensor:
    """Intensity [D, N, N] of any pupil over a periodic window, sample 0 at the centre, `steps` samples a pixel."""
    frequency = torch.fft.fftfreq(window * steps, 1.0 / steps, device=defocus_um.device, dtype=defocus_um.dtype)
    radius_cycles_per_px = (pupil.numerical_aperture * pupil.pixel_size_um / pupil.wavelength_um).reshape(())
    scaled = frequency / radius_cycles_per_px
    rho_squared = scaled[:, None] ** 2 + scaled**2
    rho = (rho_squared + 1e-12).sqrt()
    azimuth = torch.atan2(scaled[:, None].expand_as(rho), scaled.expand_as(rho))
    # A soft edge one frequency bin wide stands for the fraction of the bin inside the aperture.
    edge = (0.5 + (1.0 - rho) * radius_cycles_per_px * window).clamp(0.0, 1.0)
    inside = rho_squared.clamp(max=1.0 + 1e-3)
    modulus = amplitude(inside, pupil) * edge
    fixed = aberration_waves(inside.sqrt(), azimuth, pupil)
    waves = defocus_um[:, None, None] * defocus_waves(inside, pupil) + fixed
    field = torch.fft.ifft2(torch.polar(modulus.expand_as(waves), 2.0 * math.pi * waves))
    return field.real**2 + field.imag**2
