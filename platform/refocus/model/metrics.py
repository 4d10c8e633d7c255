"""How close an image is to the truth, in the input's own intensity units: nothing is fitted, shifted or rescaled.

Every function takes ``image`` and ``truth`` of one shape ``[..., Y, X]`` (leading axes: channels, colours). The data
range that PSNR, SSIM and NRMSE refer to is the truth's, maximum minus minimum over all of it, unless given: an
8-bit image that fills a quarter of its type is judged by that quarter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from refocus.errors import InputError

Image = npt.NDArray[Any]

#: PSNR of identical images, so that reports stay finite.
PSNR_CEILING_DB = 100.0

#: Weights of the five scales, finest first (Wang, Simoncelli, Bovik, Asilomar 2003).
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

_K1, _K2 = 0.01, 0.03
_SIGMA, _RADIUS = 1.5, 5

#: Half-bits of information would ask for more; 1/7 is what Rosenthal and Henderson (J. Mol. Biol. 333, 2003) argue
#: for between two equally noisy images, whose correlation is SNR / (1 + SNR) a ring.
FRC_THRESHOLD = 1.0 / 7.0


def data_range(truth: Image) -> float:
    """Maximum minus minimum of `truth`.

    Raises
    ------
    InputError
        If the truth is constant or not finite: no metric that refers to a range exists then.
    """
    low, high = float(np.min(truth)), float(np.max(truth))
    if not (np.isfinite(low) and np.isfinite(high)) or high <= low:
        raise InputError(f"the truth spans {low:g} to {high:g}; metrics need a finite image that is not constant.")
    return high - low


def psnr(image: Image, truth: Image, *, range_of_data: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB, ``10 log10(range^2 / mean squared error)``; at most 100."""
    image, truth = _pair(image, truth)
    span = data_range(truth) if range_of_data is None else range_of_data
    error = float(np.mean((image - truth) ** 2))
    return PSNR_CEILING_DB if error == 0 else min(PSNR_CEILING_DB, 10.0 * float(np.log10(span**2 / error)))


def nrmse(image: Image, truth: Image, *, range_of_data: float | None = None) -> float:
    """Root mean squared error divided by the data range."""
    image, truth = _pair(image, truth)
    span = data_range(truth) if range_of_data is None else range_of_data
    return float(np.sqrt(np.mean((image - truth) ** 2))) / span


def pearson(image: Image, truth: Image) -> float:
    """Pearson's correlation of pixel values; 0 where the image is constant."""
    image, truth = _pair(image, truth)
    a, b = image - image.mean(), truth - truth.mean()
    scale = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / scale if scale > 0 else 0.0


def signal_ratio(image: Image, truth: Image) -> float:
    """Total intensity over that of the truth: 1 where signal and background are conserved on average."""
    image, truth = _pair(image, truth)
    total = float(truth.sum())
    if total == 0:
        raise InputError("the truth sums to 0; a ratio of signals needs light.")
    return float(image.sum()) / total


def ssim(image: Image, truth: Image, *, range_of_data: float | None = None) -> float:
    """Structural similarity (Wang et al., IEEE TIP 13, 2004), mean over pixels and leading axes.

    Gaussian window of 1.5 px over 11 x 11, K1 = 0.01, K2 = 0.03, population covariances, the outer 5 px left out:
    ``skimage.metrics.structural_similarity(..., gaussian_weights=True, use_sample_covariance=False)``.

    Raises
    ------
    InputError
        If the images are smaller than 11 x 11.
    """
    image, truth = _pair(image, truth)
    span = data_range(truth) if range_of_data is None else range_of_data
    maps = [_ssim_maps(a, b, span)[0] for a, b in zip(_planes(image), _planes(truth), strict=True)]
    return float(np.mean([m.mean() for m in maps]))


def ms_ssim(image: Image, truth: Image, *, range_of_data: float | None = None) -> float:
    """Multi-scale structural similarity over five scales, mean over leading axes.

    Contrast-structure terms below zero count as zero (their fractional powers do not exist).

    Raises
    ------
    InputError
        If a side is below 176 px, where the window of 11 no longer fits into the coarsest scale.
    """
    image, truth = _pair(image, truth)
    if min(image.shape[-2:]) < 11 * 16:
        raise InputError(f"MS-SSIM needs at least 176 x 176 pixels, not {image.shape[-2:]}; use ssim for smaller ones.")
    span = data_range(truth) if range_of_data is None else range_of_data
    values = []
    for a, b in zip(_planes(image), _planes(truth), strict=True):
        product = 1.0
        for scale, weight in enumerate(MS_SSIM_WEIGHTS):
            similarity, contrast_structure = _ssim_maps(a, b, span)
            last = scale == len(MS_SSIM_WEIGHTS) - 1
            product *= max(float((similarity if last else contrast_structure).mean()), 0.0) ** weight
            a, b = _halved(a), _halved(b)
        values.append(product)
    return float(np.mean(values))


def _ssim_maps(a: Image, b: Image, span: float) -> tuple[Image, Image]:
    if min(a.shape) < 2 * _RADIUS + 1:
        raise InputError(f"SSIM needs at least 11 x 11 pixels, not {a.shape}.")

    def blurred(values: Image) -> Image:
        out = ndimage.gaussian_filter(values, _SIGMA, truncate=3.5)
        return out[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]

    mean_a, mean_b = blurred(a), blurred(b)
    variance_a = blurred(a * a) - mean_a**2
    variance_b = blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    contrast_structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * contrast_structure, contrast_structure


def _halved(image: Image) -> Image:
    y, x = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    return image[:y, :x].reshape(y // 2, 2, x // 2, 2).mean((1, 3))


@dataclass(frozen=True, slots=True)
class RingCorrelation:
    """Correlation of two images' spectra, ring by ring.

    Attributes
    ----------
    cycles_per_px : ndarray, shape (R,)
        Centre of each ring, from just above 0 to 0.5.
    correlation : ndarray, shape (R,)
    threshold : float
    """

    cycles_per_px: npt.NDArray[np.float64]
    correlation: npt.NDArray[np.float64]
    threshold: float

    @property
    def resolution_px(self) -> float | None:
        """Period in pixels at which the correlation first falls below the threshold and stays there for a ring.

        2.0, the sampling limit, where it never does; None where not even the coarsest ring correlates.
        """
        below = self.correlation < self.threshold
        if below[0]:
            return None
        for ring in range(1, len(below)):
            if below[ring] and (ring + 1 == len(below) or below[ring + 1]):
                high, low = self.correlation[ring - 1], self.correlation[ring]
                share = (high - self.threshold) / (high - low) if high > low else 0.0
                step = self.cycles_per_px[ring] - self.cycles_per_px[ring - 1]
                return float(1.0 / (self.cycles_per_px[ring - 1] + share * step))
        return 2.0


def ring_correlation(first: Image, second: Image, *, second_is_truth: bool = False) -> RingCorrelation:
    """Fourier ring correlation of two images of one field.

    Against another image with as much noise of its own the threshold is 1/7. Against the noise-free truth it is
    ``sqrt(1/7)``: with signal-to-noise ratio S in a ring, two noisy images correlate by ``S / (1 + S)`` and one
    noisy image with the truth by ``sqrt(S / (1 + S))``, so both cross at the same S (Rosenthal and Henderson 2003,
    eq. 8, for one image in place of the average of two).

    Means are subtracted, edges tapered (Hann), rings one frequency bin of the shorter side wide, and the curve is
    averaged over three neighbouring rings.

    Parameters
    ----------
    first, second : ndarray, shape [..., Y, X]
        Leading axes are pooled within each ring.
    second_is_truth : bool

    Returns
    -------
    RingCorrelation
    """
    first, second = _pair(first, second)
    height, width = first.shape[-2:]
    if min(height, width) < 16:
        raise InputError(f"ring correlation needs at least 16 x 16 pixels, not {height} x {width}.")
    taper = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]
    spectra = [np.fft.rfft2((i - i.mean((-2, -1), keepdims=True)) * taper) for i in (first, second)]
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    bins = np.rint(radius * min(height, width)).astype(np.int64)
    count = min(height, width) // 2 + 1
    # Columns between the first and the last stand for their mirror image too.
    weight = np.full(bins.shape, 2.0)
    weight[:, 0] = 1.0
    if width % 2 == 0:
        weight[:, -1] = 1.0

    def ring_sum(values: Image) -> Image:
        pooled = (values.reshape(-1, *bins.shape).sum(0) * weight).ravel()
        return np.bincount(bins.ravel(), pooled, minlength=count)[1:count]

    cross = ring_sum((spectra[0] * spectra[1].conj()).real)
    power = ring_sum(np.abs(spectra[0]) ** 2) * ring_sum(np.abs(spectra[1]) ** 2)
    raw = np.divide(cross, np.sqrt(power), out=np.zeros_like(cross), where=power > 0)
    smooth = ndimage.uniform_filter1d(raw, 3, mode="nearest")
    threshold = float(np.sqrt(FRC_THRESHOLD)) if second_is_truth else FRC_THRESHOLD
    return RingCorrelation(np.arange(1, count) / min(height, width), smooth, threshold)


def frc_resolution_px(first: Image, second: Image, *, second_is_truth: bool = False) -> float | None:
    """Resolution by Fourier ring correlation as a period in pixels; see :func:`ring_correlation`."""
    return ring_correlation(first, second, second_is_truth=second_is_truth).resolution_px


def _pair(image: Image, truth: Image) -> tuple[Image, Image]:
    image, truth = np.asarray(image), np.asarray(truth)
    if image.shape != truth.shape or image.ndim < 2:
        raise InputError(f"image has shape {image.shape} and truth {truth.shape}; expected one shape [..., Y, X].")
    if image.size == 0:
        raise InputError(f"images of shape {image.shape} have no pixels to compare.")
    image, truth = image.astype(np.float64), truth.astype(np.float64)
    if not (np.isfinite(image).all() and np.isfinite(truth).all()):
        raise InputError("image or truth holds NaN or infinity; a metric over them would hide it.")
    return image, truth


def _planes(image: Image) -> Image:
    return image.reshape(-1, *image.shape[-2:])
