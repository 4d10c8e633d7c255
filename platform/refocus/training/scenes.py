"""Test scenes: sharp images seen out of focus through known optics, with noise that repeats.

The blur is computed here from the two-dimensional PSF of :func:`refocus.optics.psf.widefield_psf`, one depth at a
time, and the noise by NumPy: nothing is shared with the fast simulation that networks are trained on
(:mod:`refocus.optics.random_defocus`) but the physics, so an error there would show here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy import fft

from refocus.errors import InputError
from refocus.io.microscopy import check_finite
from refocus.optics.psf import widefield_psf
from refocus.optics.settings import RGB_WAVELENGTHS_UM, STANDARD_SYSTEM, OpticalSystem
from refocus.zstack import Modality

Image = npt.NDArray[Any]

STANDARD_DEPTHS_UM = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0)
#: MS-SSIM needs it, and so does judging 35 px of blur.
SMALLEST_FIELD_PX = 176
#: Where the in-focus image holds a twentieth of its light-transfer, detail is no longer taken for the objective's.
_EPSILON = 0.0025


class SceneSettings(BaseModel):
    """How sharp images become test scenes.

    Parameters
    ----------
    system : OpticalSystem
    defocus_um : tuple of float
        Depths |z|.
    photons : tuple of float
        Photo-electrons at the sharp image's peak (of its 4 x 4 means: a hot pixel sets no exposure).
    read_noise_electrons : float
    field_px : int
        Largest side of a scene. Of larger images the window with the most contrast is taken.
    margin_px : int
        Rim of the sharp image that only lends its light. Images too small for it give up a narrower rim and are
        mirrored beyond it.
    formation : {'relative', 'psf'}
        ``'relative'``: the image is already what the objective shows in focus, so its spectrum is multiplied by
        ``H_z / H_0`` and z = 0 changes nothing. ``'psf'``: it is taken for the object itself and convolved with the
        PSF at every z, 0 included; truth is the image.
    seed : int
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: OpticalSystem = STANDARD_SYSTEM
    defocus_um: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = STANDARD_DEPTHS_UM
    photons: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (1000.0, 2000.0)
    read_noise_electrons: Annotated[float, Field(ge=0)] = 1.6
    field_px: Annotated[int, Field(ge=32)] = 256
    margin_px: Annotated[int, Field(ge=0)] = 40
    formation: Literal["relative", "psf"] = "relative"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SharpImage:
    """An in-focus image that serves as truth.

    Parameters
    ----------
    pixels : ndarray, shape [C, Y, X]
        Linear intensity in the file's units.
    specimen : str
        What is kept together when splitting and bootstrapping.
    modality : {'fluorescence', 'brightfield', 'phase_contrast'}
    source : str

    Raises
    ------
    InputError
        If the pixels are of another shape, not finite, or all the same: that is no truth to measure with.
    """

    pixels: Image
    specimen: str
    modality: Modality
    source: str = ""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or min(self.pixels.shape[1:]) < 32:
            raise InputError(
                f"{self.source or self.specimen} has shape {self.pixels.shape}; expected [C, Y, X] of 32 px and more."
            )
        check_finite(self.pixels, self.source or self.specimen)
        if self.pixels.min() == self.pixels.max():
            raise InputError(f"{self.source or self.specimen} is constant; it says nothing.")

    @property
    def holds_a_field(self) -> bool:
        """Whether a field of `SMALLEST_FIELD_PX` can be cut from it."""
        return min(self.pixels.shape[1:]) >= SMALLEST_FIELD_PX


@dataclass(frozen=True, slots=True)
class Scene:
    """One image out of focus, its truth, and what blurred it.

    Attributes
    ----------
    image, truth : ndarray, float32, shape [C, Y, X]
        In the sharp image's units; `truth` is without the simulated noise.
    psf : ndarray, float32, shape [C, K, K]
        Each channel's true kernel.
    blur_radius_px : float
    """

    image: Image
    truth: Image
    psf: Image
    specimen: str
    modality: Modality
    source: str
    defocus_um: float
    photons: float
    blur_radius_px: float

    @property
    def band(self) -> str:
        """The depth as a label."""
        return f"{self.defocus_um:g} um"

    @property
    def condition(self) -> tuple[str, float, float]:
        """Modality, depth and photons: what classical methods have one setting for."""
        return self.modality, self.defocus_um, self.photons


def scenes_of(images: Iterable[SharpImage], settings: SceneSettings) -> Iterator[Scene]:
    """Yield every depth and exposure of each image; equal settings yield equal pixels, in any order of images."""
    kernels = _Kernels(settings)
    for sharp in images:
        yield from _scenes(sharp, settings, kernels)


def _scenes(sharp: SharpImage, settings: SceneSettings, kernels: _Kernels) -> Iterator[Scene]:
    whole = np.clip(sharp.pixels.astype(np.float32), 0.0, None)
    rows, columns = _liveliest(whole, _windows(whole, 1, settings), _windows(whole, 2, settings))
    truth = whole[:, rows, columns]
    if float(truth.max()) <= float(truth.min()):
        raise InputError(f"{sharp.source or sharp.specimen} is constant where it is tested; it says nothing.")
    reach = kernels.reach_px
    around = _surroundings(whole, rows, columns, reach)
    spectrum = fft.rfft2(around)
    side = min(4, *truth.shape[1:])
    y, x = truth.shape[1] // side * side, truth.shape[2] // side * side
    peak = float(truth[:, :y, :x].reshape(len(truth), y // side, side, x // side, side).mean((2, 4)).max())
    for defocus_um in settings.defocus_um:
        psf = kernels.of(sharp.modality, len(truth), defocus_um)
        seen = truth
        if not _is_point(psf):
            blurred = fft.irfft2(spectrum * _transfer(psf, around.shape[1:]), s=around.shape[1:])
            seen = np.clip(blurred[:, reach : reach + truth.shape[1], reach : reach + truth.shape[2]], 0.0, None)
        for photons in settings.photons:
            name = f"{sharp.specimen}|{sharp.source}|{defocus_um:g}|{photons:g}"
            key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
            rng = np.random.default_rng([settings.seed, key])
            electrons = rng.poisson(seen * (photons / peak)) + rng.normal(0, settings.read_noise_electrons, seen.shape)
            yield Scene(
                image=np.clip(electrons * (peak / photons), 0.0, None).astype(np.float32),
                truth=truth,
                psf=psf,
                specimen=sharp.specimen,
                modality=sharp.modality,
                source=sharp.source,
                defocus_um=defocus_um,
                photons=photons,
                blur_radius_px=settings.system.blur_radius_px(defocus_um),
            )


@lru_cache(maxsize=128)
def defocus_kernel(
    system: OpticalSystem, defocus_um: float, *, reach_px: int, formation: Literal["relative", "psf"] = "relative"
) -> Image:
    """What an in-focus image is convolved with to be seen at `defocus_um`.

    ``'psf'`` is the PSF itself. ``'relative'`` is the ratio of transfer functions

        G = (H_z H_0 + eps F) / (H_0^2 + eps),     F = exp(-(pi r f)^2 / 2),     eps = 0.0025

    with r the geometric radius: division where the objective transfers detail, a Gaussian of the disc's width where it
    does not (an image there holds noise, or a better objective's detail). It is a single point at z = 0.

    Returns
    -------
    ndarray, float32, shape [2 reach_px + 1, 2 reach_px + 1]
        Centred, summing to 1; read-only, for each is computed once. The ratio may dip below zero by a little.
    """
    size = 2 * reach_px + 1
    if formation == "relative" and defocus_um == 0:
        point = np.zeros((size, size), np.float32)
        point[reach_px, reach_px] = 1.0
        point.flags.writeable = False
        return point
    psfs = widefield_psf(system, torch.tensor([defocus_um, 0.0], dtype=torch.float64), size_px=size).numpy()
    kernel = psfs[0]
    if formation == "relative":
        h_z, h_0 = (fft.rfft2(np.fft.ifftshift(p)).real for p in psfs)
        frequency = np.hypot(fft.fftfreq(size)[:, None], fft.rfftfreq(size))
        beyond = np.exp(-0.5 * (math.pi * system.blur_radius_px(defocus_um) * frequency) ** 2)
        ratio = (h_z * h_0 + _EPSILON * beyond) / (h_0**2 + _EPSILON)
        kernel = np.fft.fftshift(fft.irfft2(np.clip(ratio, -1.0, 1.0), s=(size, size)))
    kernel = (kernel / kernel.sum()).astype(np.float32)
    kernel.flags.writeable = False
    return kernel


class _Kernels:
    """Kernels by depth and wavelength, of one reach."""

    def __init__(self, settings: SceneSettings) -> None:
        self._settings = settings
        deepest = max(settings.defocus_um, default=0.0)
        # 99% of the light lies within 1.3 radii; diffraction spreads the rest far.
        self.reach_px = math.ceil(1.5 * settings.system.blur_radius_px(deepest)) + 10

    def of(self, modality: Modality, channels: int, defocus_um: float) -> Image:
        """Return [channels, K, K]."""
        coloured = modality == "brightfield" and channels == 3
        own = (self._settings.system.wavelength_um,) * channels
        return np.stack([self._one(w, defocus_um) for w in (RGB_WAVELENGTHS_UM if coloured else own)])

    def _one(self, wavelength_um: float, defocus_um: float) -> Image:
        system = self._settings.system.model_copy(update={"wavelength_um": wavelength_um})
        return defocus_kernel(system, defocus_um, reach_px=self.reach_px, formation=self._settings.formation)


def _is_point(psf: Image) -> bool:
    middle = psf.shape[-1] // 2
    return bool((psf[:, middle, middle] == 1.0).all())


def _transfer(psf: Image, shape: Sequence[int]) -> Image:
    reach = psf.shape[-1] // 2
    padded = np.zeros((len(psf), *shape), np.float32)
    padded[:, : psf.shape[-2], : psf.shape[-1]] = psf
    return fft.rfft2(np.roll(padded, (-reach, -reach), axis=(-2, -1)))


def _windows(whole: Image, axis: int, settings: SceneSettings) -> list[slice]:
    """Where a scene may lie along one axis: the margin is kept as far as the smallest field allows."""
    length = whole.shape[axis]
    margin = min(settings.margin_px, max(0, (length - SMALLEST_FIELD_PX) // 2))
    field = min(settings.field_px, length - 2 * margin)
    starts = range(margin, length - margin - field + 1, max(1, field // 2))
    return [slice(s, s + field) for s in starts]


def _liveliest(whole: Image, rows: list[slice], columns: list[slice]) -> tuple[slice, slice]:
    grey = whole.mean(0)
    return max(((r, c) for r in rows for c in columns), key=lambda w: float(grey[w].std()))


def _surroundings(whole: Image, rows: slice, columns: slice, reach: int) -> Image:
    """The window with `reach` pixels around it, mirrored where the image ends."""
    out = whole
    for axis, window in ((1, rows), (2, columns)):
        before, after = max(0, reach - window.start), max(0, window.stop + reach - whole.shape[axis])
        pad = [(0, 0)] * 3
        pad[axis] = (before, after)
        out = np.pad(out, pad, mode="symmetric")
        start = window.start - reach + before
        out = np.take(out, np.arange(start, start + window.stop - window.start + 2 * reach), axis)
    return out
