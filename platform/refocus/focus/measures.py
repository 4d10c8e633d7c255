"""How sharp a plane is, as one number: the measures that the field compares.

Every measure takes an image of shape (Y, X) in any real dtype and returns a float that is largest in focus. All are
means over pixels, so that images of different sizes compare, and treat rows and columns alike. Adding a constant to
the image changes none of them but `normalised_variance`; multiplying it by g multiplies them by g to the power in
`INTENSITY_POWER`. What white noise of variance s² adds on average is stated with each, for it decides which of them
can be trusted in low light: Vollath's two, by which neighbouring pixels are compared, are blind to it.

References
----------
.. [1] D. Vollath, "Automatic focusing by correlative methods", J. Microscopy 147 (1987) 279; "The influence of the
   scene parameters and of noise on the behaviour of automatic focusing algorithms", J. Microscopy 151 (1988) 133.
.. [2] F. C. A. Groen, I. T. Young, G. Ligthart, "A comparison of different focus functions for use in autofocus
   algorithms", Cytometry 6 (1985) 81.
.. [3] J. F. Brenner et al., "An automated microscope for cytologic research", J. Histochem. Cytochem. 24 (1976) 100.
.. [4] J. M. Tenenbaum, "Accommodation in computer vision", PhD thesis, Stanford (1970); E. P. Krotkov, "Focusing",
   Int. J. Computer Vision 1 (1987) 223.
.. [5] M. Subbarao, T. Choi, A. Nikzad, "Focusing techniques", Optical Engineering 32 (1993) 2824.
.. [6] F. R. Boddeke et al., "Autofocusing in microscopy based on the OTF and sampling", Bioimaging 2 (1994) 193.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from refocus.errors import ConfigurationError, InputError

Image = npt.NDArray[Any]
Measure = Callable[[Image], float]

_SMALLEST_PX = 3
#: Spatial frequencies of `spectral`, in cycles a pixel: above what defocus spares, below where noise is all there is.
SPECTRAL_BAND = (0.10, 0.25)


def vollath4(image: Image) -> float:
    """Autocorrelation at a lag of one pixel less that of two [1]_.

    ``mean(J[x] (J[x+1] - J[x+2]))`` over rows, averaged with the same over columns; J is the image less its mean.
    White noise adds nothing on average.
    """
    centred = _centred(image)
    return (_vollath4_along_x(centred) + _vollath4_along_x(centred.T)) / 2


def vollath5(image: Image) -> float:
    """Autocorrelation at a lag of one pixel less the squared mean [1]_.

    ``mean(J[x] J[x+1])`` over rows, averaged with the same over columns; J is the image less its mean. It falls
    slowly with defocus where the specimen is coarse. White noise adds nothing on average.
    """
    centred = _centred(image)
    along_x = _mean_product(centred[:, :-1], centred[:, 1:])
    along_y = _mean_product(centred[:-1], centred[1:])
    return (along_x + along_y) / 2


def standard_deviation(image: Image) -> float:
    """Standard deviation of the intensities [2]_; noise adds in square: sqrt(v + s²) for an image of variance v."""
    centred = _centred(image)
    return float(np.sqrt(_mean_product(centred, centred)))


def normalised_variance(image: Image) -> float:
    """Variance over mean [2]_, zero where the mean is not positive.

    The division answers to the lamp, not to a camera's offset: take the offset off first. White noise adds s²/mean.
    """
    centred = _centred(image)
    mean = float(np.mean(image, dtype=np.float64))
    return _mean_product(centred, centred) / mean if mean > 0 else 0.0


def brenner(image: Image) -> float:
    """Squared difference of pixels two apart [3]_.

    ``mean((I[x+2] - I[x])²)``, rows averaged with columns. White noise adds 2 s².
    """
    centred = _centred(image)
    along_x = centred[:, 2:] - centred[:, :-2]
    along_y = centred[2:] - centred[:-2]
    return (_mean_product(along_x, along_x) + _mean_product(along_y, along_y)) / 2


def tenengrad(image: Image) -> float:
    """Squared length of the Sobel gradient [4]_, over pixels whose 3 x 3 neighbourhood lies inside.

    ``mean(Gx² + Gy²)`` with the kernel ``[1, 2, 1]ᵀ [-1, 0, 1]``. White noise adds 24 s².
    """
    centred = _centred(image)
    smooth_y = centred[:-2] + 2 * centred[1:-1] + centred[2:]
    smooth_x = centred[:, :-2] + 2 * centred[:, 1:-1] + centred[:, 2:]
    gradient_x = smooth_y[:, 2:] - smooth_y[:, :-2]
    gradient_y = smooth_x[2:] - smooth_x[:-2]
    return _mean_product(gradient_x, gradient_x) + _mean_product(gradient_y, gradient_y)


def laplacian_energy(image: Image) -> float:
    """Squared five-point Laplacian [5]_, over pixels whose neighbours lie inside.

    ``mean((I[y-1,x] + I[y+1,x] + I[y,x-1] + I[y,x+1] - 4 I[y,x])²)``. The sharpest of peaks and the first to drown:
    white noise adds 20 s².
    """
    centred = _centred(image)
    middle = centred[1:-1, 1:-1]
    laplacian = centred[:-2, 1:-1] + centred[2:, 1:-1] + centred[1:-1, :-2] + centred[1:-1, 2:] - 4 * middle
    return _mean_product(laplacian, laplacian)


def spectral(image: Image) -> float:
    """Variance carried by the middle frequencies, `SPECTRAL_BAND`, after Boddeke [6]_.

    ``sum(|DFT(w J)|²) / (N sum(w²))`` over frequencies of the band, w the Hann window, J the image less its mean,
    N the number of pixels. White noise adds s² times the share of frequencies in the band (about 0.165).
    """
    centred = _centred(image)
    height, width = centred.shape
    window = _hann(height)[:, None] * _hann(width)[None, :]
    power = np.abs(fft.rfft2(centred * window)) ** 2
    # A real image's spectrum is stored by half: all but the first column, and of even widths the last, count twice.
    power[:, 1 : (width + 1) // 2] *= 2
    radius = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)[None, :])
    inside = (radius >= SPECTRAL_BAND[0]) & (radius < SPECTRAL_BAND[1])
    return float(power[inside].sum(dtype=np.float64) / (centred.size * np.sum(window.astype(np.float64) ** 2)))


#: Every measure by its name.
MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "vollath4": vollath4,
        "vollath5": vollath5,
        "standard_deviation": standard_deviation,
        "normalised_variance": normalised_variance,
        "brenner": brenner,
        "tenengrad": tenengrad,
        "laplacian_energy": laplacian_energy,
        "spectral": spectral,
    }
)

#: A measure of g times the image is g to this power times the measure of the image.
INTENSITY_POWER: Mapping[str, int] = MappingProxyType(
    {name: 1 if name in ("standard_deviation", "normalised_variance") else 2 for name in MEASURES}
)

#: Blind to white noise and to offsets, and right on fluorescence, phase contrast and stained tissue alike.
DEFAULT_MEASURE = "vollath4"


def measure_named(name: str) -> Measure:
    """Return the measure of that name.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    if name not in MEASURES:
        raise ConfigurationError(f"there is no focus measure {name!r}; expected one of {', '.join(MEASURES)}.")
    return MEASURES[name]


def _centred(image: Image) -> Image:
    # Without its mean an image loses nothing that a measure looks at, and single precision becomes enough.
    if image.ndim != 2 or min(image.shape) < _SMALLEST_PX or image.dtype.kind not in "biuf":
        raise InputError(
            f"a focus measure got shape {image.shape} of {image.dtype}; expected one grey plane (Y, X) of real "
            f"numbers, at least {_SMALLEST_PX} x {_SMALLEST_PX} pixels."
        )
    mean = np.mean(image, dtype=np.float64)
    if not np.isfinite(mean):
        raise InputError("a focus measure got NaN or infinite pixels; expected finite intensities.")
    centred: Image = image.astype(np.float64 if image.dtype == np.float64 else np.float32)
    centred -= mean
    return centred


def _mean_product(a: Image, b: Image) -> float:
    # Rows in the image's own precision, their sum in double: as exact as needed and three times as fast.
    return float(np.einsum("yx,yx->y", a, b).sum(dtype=np.float64) / a.size)


def _vollath4_along_x(centred: Image) -> float:
    return _mean_product(centred[:, :-2], centred[:, 1:-1] - centred[:, 2:])


def _hann(length: int) -> npt.NDArray[np.float32]:
    return np.hanning(length + 2)[1:-1].astype(np.float32)
