"""Does the restored image explain the input? Blurred again by a fitted defocus, it should agree with what came in.

A network can paint what was never there. What it paints must at least reproduce the measurement: the output is seen
through the defocus that fits best, and what remains of the input beyond its noise is the residual. A small residual
is necessary for trust, not sufficient: detail finer than the blur leaves no trace in either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import fft, ndimage

from refocus.errors import InputError
from refocus.model.blanks import Blanks
from refocus.model.specimen import Specimen, continued
from refocus.optics.settings import STANDARD_SYSTEM, OpticalSystem
from refocus.optics.transfer import RoundTransfer, interpolate

Image = npt.NDArray[Any]

_EPSILON = 0.0025
_STEPS = (0.0, 0.25, 0.5, 0.7, 0.85, 1.0, 1.15, 1.35, 1.6)


@dataclass(frozen=True, slots=True)
class Consistency:
    """How well the output, blurred again, explains the input.

    Attributes
    ----------
    blur_radius_px : float
        Of the defocus that fits best.
    residual : float
        RMS of the difference over the input's standard deviation: 0 explains all of it, 1 nothing.
    noise_ratio : float
        RMS of the difference over the input's noise: near 1 nothing but noise is left.
    """

    blur_radius_px: float
    residual: float
    noise_ratio: float


def check_consistency(
    image: Image,
    restored: Image,
    blur_radius_px: float,
    *,
    system: OpticalSystem = STANDARD_SYSTEM,
    blanks: Blanks | None = None,
) -> Consistency:
    """Fit a defocus near the predicted one and compare the re-blurred output with the input.

    Parameters
    ----------
    image, restored : ndarray, shape [Y, X] or [C, Y, X]
        In one unit. Linear intensity.
    blur_radius_px : float
        Predicted; radii from 0 to 1.6 times it are tried, and refined by a parabola.
    system : OpticalSystem, optional
        The objective where it is known: of one that is not, its blur in pixels and its sampling matter, not its um.
    blanks : Blanks, optional
        Of the image, where they are known.

    Raises
    ------
    InputError
        If the shapes differ, or an axis is below 16 px.
    """
    if image.shape != restored.shape or image.ndim not in (2, 3) or min(image.shape[-2:]) < 16:
        raise InputError(f"image {image.shape} and restored {restored.shape}; expected one shape of 16 px and more.")
    given, output = (np.asarray(i, np.float32).reshape(-1, *image.shape[-2:]) for i in (image, restored))
    # Padding and scale bars were not blurred, and blurring them again would explain nothing.
    specimen = Specimen.of(given) if blanks is None else Specimen(given, blanks)
    seen, blank = specimen.everywhere()
    if blank.any():
        given, output = (part.astype(np.float32) for part in (seen, continued(output, blank)))
    spread = float(given.std())
    if spread == 0:
        return Consistency(0.0, 0.0 if np.array_equal(given, output) else 1.0, 1.0)
    radii = sorted({round(step * max(blur_radius_px, 1.0), 3) for step in _STEPS})
    margin = min(math.ceil(1.2 * radii[-1]) + 4, min(given.shape[-2:]) - 1)
    padded = np.pad(output, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    shape = tuple(fft.next_fast_len(s, True) for s in padded.shape[-2:])
    padded = np.pad(padded, ((0, 0), *((0, s - p) for s, p in zip(shape, padded.shape[-2:], strict=True))), mode="edge")
    spectrum = fft.rfft2(padded)
    # Light from beyond the rim is not in the output; half of the reach is a compromise with having pixels left.
    rim = min(math.ceil(0.6 * blur_radius_px), min(given.shape[-2:]) // 4)
    inner = (slice(None), slice(rim, given.shape[-2] - rim), slice(rim, given.shape[-1] - rim))

    def left(radius: float) -> float:
        blurred = fft.irfft2(spectrum * relative_transfer(radius, shape, system), s=shape)
        seen = blurred[:, margin : margin + given.shape[-2], margin : margin + given.shape[-1]]
        return float(np.sqrt(np.mean((seen - given)[inner] ** 2, where=~blank[inner[1:]])))

    errors = [left(r) for r in radii]
    best = int(np.argmin(errors))
    radius, error = radii[best], errors[best]
    if 0 < best < len(radii) - 1:
        refined = _vertex(radii[best - 1 : best + 2], errors[best - 1 : best + 2])
        at_vertex = left(refined)
        if at_vertex < error:
            radius, error = refined, at_vertex
    return Consistency(radius, error / spread, error / max(noise_of(given), 1e-12 * spread))


def relative_transfer(
    blur_radius_px: float, shape: tuple[int, int], system: OpticalSystem = STANDARD_SYSTEM
) -> npt.NDArray[np.float32]:
    """Transfer function from an in-focus image to the same image at a blur radius, over an ``rfft2`` grid.

    The ratio of transfer functions ``(H_z H_0 + eps F) / (H_0^2 + eps)`` of :mod:`refocus.optics.random_defocus`: 1
    everywhere in focus, 1 at frequency 0 always.
    """
    if blur_radius_px <= 0:
        return np.ones((shape[0], shape[1] // 2 + 1), np.float32)
    profile = _profile(round(float(blur_radius_px), 3), system)
    frequency = np.hypot(fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1]))
    position = frequency / math.sqrt(0.5) * (len(profile) - 1)
    return np.interp(position, np.arange(len(profile)), profile).astype(np.float32)


@lru_cache(maxsize=256)
def _profile(blur_radius_px: float, system: OpticalSystem) -> npt.NDArray[np.float32]:
    na, n, wavelength = system.numerical_aperture, system.refractive_index, system.wavelength_um
    q = na * system.pixel_size_um / wavelength
    table = _tables(math.ceil(2 * math.pi * q * blur_radius_px / 64.0) * 64)
    squared = table.pupil_rho_squared
    per_um = n * ((1.0 - squared * (na / n) ** 2).sqrt() - 1.0) / wavelength
    distances = torch.tensor([[system.defocus_um_for(blur_radius_px)], [0.0]])
    samples = 2048
    cycles_per_px = torch.linspace(0.0, math.sqrt(0.5), samples)
    position = (cycles_per_px / q / table.frequency_step).expand(2, -1)
    h_z, h_0 = interpolate(table(torch.ones(2, len(squared)), distances * per_um), position)
    beyond = torch.exp(-0.5 * (math.pi * blur_radius_px * cycles_per_px) ** 2)
    ratio = (h_z * h_0 + _EPSILON * beyond) / (h_0 * h_0 + _EPSILON)
    profile: npt.NDArray[np.float32] = ratio.clamp(-1.0, 1.0).numpy()
    return profile


@lru_cache(maxsize=8)
def _tables(reach: int) -> RoundTransfer:
    return RoundTransfer.reaching(float(reach))


def noise_of(image: Image) -> float:
    """Standard deviation of pixel noise, [..., Y, X].

    Median absolute response to a second difference in both directions, which is blind to anything smooth (Immerkaer,
    Comput. Vis. Image Underst. 64, 300 (1996)); detail of an in-focus image counts as noise in part.
    """
    bend = np.array([1, -2, 1], np.float32)
    values = np.asarray(image, np.float32)
    response = np.abs(ndimage.correlate1d(ndimage.correlate1d(values, bend, axis=-1), bend, axis=-2))
    # The mask's weights squared add to 36.
    return float(np.median(response)) / 0.6745 / 6.0


def _vertex(x: list[float], y: list[float]) -> float:
    bend, slope, _ = np.polyfit(np.array(x) - x[1], y, 2)
    return float(np.clip(x[1] - slope / (2 * bend), x[0], x[2])) if bend > 0 else x[1]
