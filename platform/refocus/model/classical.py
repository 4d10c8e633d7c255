"""Classical restoration: the bar that a network has to clear.

Wiener and Richardson-Lucy are given the true point spread function, which no blind method has. Both handle the rim
honestly: light from outside the field is part of the image and is not there to be restored, so the field is
extended by the reach of the PSF and cut back afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from refocus.errors import InputError

Image = npt.NDArray[Any]
Regulariser = Literal["white", "gradient"]


@dataclass(frozen=True, slots=True)
class UnsharpSetting:
    """Radius in pixels (Gaussian sigma) and how much of the detail is added."""

    radius_px: float
    amount: float


@dataclass(frozen=True, slots=True)
class WienerSetting:
    """Noise over signal, and whether it is constant or grows as frequency squared, as natural images ask for."""

    balance: float
    regulariser: Regulariser


UNSHARP_GRID = tuple(UnsharpSetting(r, a) for r in (1.0, 2.0, 4.0, 8.0) for a in (0.25, 0.5, 1.0, 2.0))
WIENER_GRID = tuple(
    WienerSetting(b, r) for r in ("white", "gradient") for b in (1e-3, 3e-3, 6e-3, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
)
RICHARDSON_LUCY_GRID = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200)


def unsharp_mask(image: Image, setting: UnsharpSetting) -> Image:
    """Return ``image + amount (image - Gaussian(image))``, [..., Y, X]; the mean is kept."""
    values = np.asarray(image, np.float32)
    sigma = (0.0,) * (values.ndim - 2) + (setting.radius_px,) * 2
    return values + setting.amount * (values - ndimage.gaussian_filter(values, sigma, mode="reflect"))


def wiener(image: Image, psf: Image, setting: WienerSetting) -> Image:
    """Wiener deconvolution with the true PSF.

    ``F = conj(H) G / (|H|^2 + balance R)`` with R = 1, or R growing as the square of frequency: the ratio of white
    noise to an image whose power falls as its inverse, as natural images' does (Field, J. Opt. Soc. Am. A 4, 2379
    (1987)). The zero frequency passes unchanged, so light is kept. Beyond the rim stands what twelve steps of
    Richardson-Lucy expect a larger camera to have seen: with mirrored or faded rims the filter rings far inwards.

    Parameters
    ----------
    image : ndarray, shape [Y, X] or [C, Y, X]
    psf : ndarray, shape [K, K] or [C, K, K]
        Centred at ``K // 2``, summing to 1.
    setting : WienerSetting

    Returns
    -------
    ndarray, float32, shape of `image`
    """
    return WienerFilter(image, psf)(setting)


class WienerFilter:
    """Wiener deconvolution of one image under many settings, its spectra computed once."""

    def __init__(self, image: Image, psf: Image) -> None:
        steps = _RichardsonLucy(image, psf)
        for _ in range(12):
            steps.advance()
        field = self._field = _Field.around(image, psf)
        beyond = fft.irfft2(fft.rfft2(steps.estimate) * field.transfer, s=field.shape)
        values = np.asarray(image, np.float32)
        mask = field.placed(np.ones(values.shape, np.float32))
        self._spectrum = fft.rfft2(field.placed(values) + (1 - mask) * beyond)
        y, x = fft.fftfreq(field.shape[0]), fft.rfftfreq(field.shape[1])
        squared = (2 - 2 * np.cos(2 * np.pi * y[:, None])) + (2 - 2 * np.cos(2 * np.pi * x))
        self._gradient = squared.astype(np.float32)

    def __call__(self, setting: WienerSetting) -> Image:
        """Return the restored image."""
        h = self._field.transfer
        damping = setting.balance * (self._gradient if setting.regulariser == "gradient" else 1.0)
        power = np.abs(h) ** 2 + damping
        gain = np.divide(h.conj(), power, out=np.zeros_like(h), where=power > 0)
        gain[..., 0, 0] = 1.0
        return self._field.cut(fft.irfft2(self._spectrum * gain, s=self._field.shape))


def richardson_lucy(image: Image, psf: Image, iterations: Sequence[int]) -> dict[int, Image]:
    """Richardson-Lucy deconvolution with the true PSF, on a field that reaches beyond the image.

    Pixels outside the image are unknowns that no data speak about: the update divides by the share of each pixel's
    light that was seen (Bertero and Boccacci, Astron. Astrophys. 437, 369 (2005)), so the rim does not ring.

    Parameters
    ----------
    image : ndarray, shape [Y, X] or [C, Y, X]
        Not negative; below zero counts as zero.
    psf : ndarray, shape [K, K] or [C, K, K]
        Centred at ``K // 2``, summing to 1; negative lobes count as zero.
    iterations : sequence of int
        Where to look: one run serves all.

    Returns
    -------
    dict of int to ndarray, float32, shape of `image`
        The estimate after so many iterations.

    Raises
    ------
    InputError
        If `iterations` is empty or starts below 1.
    """
    if not iterations or min(iterations) < 1:
        raise InputError(f"iterations is {tuple(iterations)}; expected one or more positive numbers.")
    steps = _RichardsonLucy(image, psf)
    found: dict[int, Image] = {}
    for step in range(1, max(iterations) + 1):
        steps.advance()
        if step in iterations:
            found[step] = steps.field.cut(steps.estimate)
    return found


class _RichardsonLucy:
    """The estimate over the whole field, one step at a time."""

    def __init__(self, image: Image, psf: Image) -> None:
        values = np.clip(np.asarray(image, np.float32), 0.0, None)
        positive = np.clip(psf, 0.0, None)
        self.field = _Field.around(values, positive / positive.sum((-2, -1), keepdims=True))
        self._seen = self.field.placed(values)
        self._least = np.float32(1e-6 * float(values.max()) + 1e-12)
        self._backwards = self.field.transfer.conj()
        weight = self._through(self.field.placed(np.ones(values.shape, np.float32)), self._backwards)
        # What sends less than a hundredth of its light into the image stays as it was extrapolated.
        self._share = np.divide(1.0, weight, out=np.zeros_like(weight), where=weight > 0.01)
        self.estimate = np.maximum(self.field.mirrored(values), self._least)

    def _through(self, values: Image, transfer: Image) -> Image:
        return fft.irfft2(fft.rfft2(values) * transfer, s=self.field.shape)

    def advance(self) -> None:
        predicted = np.maximum(self._through(self.estimate, self.field.transfer), self._least)
        correction = np.maximum(self._through(self._seen / predicted, self._backwards), 0.0)
        self.estimate = self.estimate * np.where(self._share > 0, correction * self._share, 1.0)


@dataclass(frozen=True, slots=True)
class _Field:
    """An image's place in a larger, periodic field, and the PSF's transfer function over that field."""

    shape: tuple[int, int]
    image_shape: tuple[int, int]
    reach: int
    transfer: Image

    @classmethod
    def around(cls, image: Image, psf: Image) -> _Field:
        if image.ndim not in (2, 3) or psf.ndim not in (2, 3) or psf.shape[-1] != psf.shape[-2]:
            raise InputError(f"image {image.shape} and PSF {psf.shape}; expected [Y, X] or [C, Y, X], and [K, K].")
        if psf.ndim == 3 and psf.shape[:-2] != image.shape[:-2]:
            raise InputError(f"{psf.shape[0]} PSFs for an image of shape {image.shape}; expected one a channel.")
        if abs(float(psf.sum((-2, -1)).min()) - 1.0) > 1e-3:
            raise InputError(f"the PSF sums to {float(psf.sum((-2, -1)).min()):g}; expected 1, or light is lost.")
        reach = psf.shape[-1] // 2
        height, width = image.shape[-2:]
        shape = (fft.next_fast_len(height + 2 * reach, True), fft.next_fast_len(width + 2 * reach, True))
        padded = np.zeros((*psf.shape[:-2], *shape), np.float32)
        padded[..., : psf.shape[-2], : psf.shape[-1]] = psf
        transfer = fft.rfft2(np.roll(padded, (-reach, -reach), axis=(-2, -1)))
        return cls(shape, (height, width), reach, transfer)

    def _margins(self, leading: int) -> list[tuple[int, int]]:
        after = [self.shape[i] - self.image_shape[i] - self.reach for i in (0, 1)]
        return [(0, 0)] * leading + [(self.reach, after[0]), (self.reach, after[1])]

    def placed(self, image: Image) -> Image:
        return np.pad(image, self._margins(image.ndim - 2))

    def mirrored(self, image: Image) -> Image:
        return np.pad(image, self._margins(image.ndim - 2), mode="symmetric")

    def cut(self, values: Image) -> Image:
        y, x = self.image_shape
        return np.ascontiguousarray(values[..., self.reach : self.reach + y, self.reach : self.reach + x], np.float32)
