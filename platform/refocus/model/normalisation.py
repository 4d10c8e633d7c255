"""From grey levels to what networks see, once for each image: ``(pixels - offset) / scale``.

The constants come from percentiles of the whole image, so that a hot pixel moves nothing and all tiles of an image
share them. Restoring undoes them exactly; values keep the input's units. Zero is where there is no specimen: darkness
in fluorescence; in brightfield the lamp's full light, from which a specimen takes away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.errors import ConfigurationError, UnsupportedImage

LOW_PERCENTILE = 1.0
HIGH_PERCENTILE = 99.8
#: Sparse images, in which the bright percentile is background, are scaled by their extreme instead, divided by this.
SPARSE_RATIO = 8.0
EXTREME_PERCENTILE = 99.99
#: Percentiles are taken over at most this many pixels, on a regular grid: the answer of 20000 x 20000 differs by less
#: than its noise and needs no sorted copy.
MOST_SAMPLES = 4_000_000


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Two constants of one image.

    Parameters
    ----------
    offset, scale : float
        In the image's units; `scale` is negative where darker pixels hold more of the specimen.

    Raises
    ------
    ConfigurationError
        If they are not finite or `scale` is zero.

    Examples
    --------
    >>> Normalisation(offset=100.0, scale=50.0).apply(np.array([100.0, 150.0]))
    array([0., 1.], dtype=float32)
    """

    offset: float
    scale: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.offset) and math.isfinite(self.scale) and self.scale != 0):
            raise ConfigurationError(
                f"offset is {self.offset} and scale {self.scale}; both must be finite and scale not zero."
            )

    @property
    def absorbing(self) -> bool:
        """Whether the specimen takes light away."""
        return self.scale < 0

    def apply(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return float32 in normalised units; subtraction happens in float64 where a wide integer needs it."""
        wide = pixels.dtype.itemsize > 2 and pixels.dtype != np.float32
        values: npt.NDArray[Any] = pixels.astype(np.float64 if wide else np.float32)
        np.subtract(values, self.offset, out=values)
        return np.divide(values, self.scale, out=values).astype(np.float32, copy=False)

    def undo(
        self, normalised: npt.NDArray[Any], dtype: type[np.float32] | type[np.float64] = np.float64
    ) -> npt.NDArray[Any]:
        """Return the image's units, in double precision unless told otherwise."""
        values: npt.NDArray[Any] = normalised.astype(dtype)
        np.multiply(values, self.scale, out=values)
        return np.add(values, self.offset, out=values)


def estimate(pixels: npt.NDArray[Any], *, absorbing: bool = False) -> Normalisation:
    """Choose the constants of one whole image.

    Offset is the 1st percentile; scale the distance from there to the 99.8th, or an eighth of the distance to the
    99.99th where that is more. A constant image gets its value as offset and a scale of 1.

    Parameters
    ----------
    pixels : ndarray, any shape and real dtype
        All pixels that are to share the constants: the colours of an RGB image, one channel of a fluorescence image.
    absorbing : bool
        The specimen takes light away: percentiles are counted from the bright end, and `scale` is negative.

    Raises
    ------
    UnsupportedImage
        If it is empty, not of numbers, or holds NaN or infinities among the pixels looked at.
    """
    if pixels.size == 0 or pixels.dtype.kind not in "buif":
        raise UnsupportedImage(
            f"an image of shape {pixels.shape} and dtype {pixels.dtype} has no grey levels; expected at least one "
            "pixel of integers or floats."
        )
    sign = -1.0 if absorbing else 1.0
    some = thinned(pixels)
    wanted = [LOW_PERCENTILE, HIGH_PERCENTILE, EXTREME_PERCENTILE]
    if some.dtype.kind in "ui" and some.dtype.itemsize <= 2:
        low, high, extreme, least, most = _counted(some, wanted, sign)
    else:
        samples = sign * some.astype(np.float64)
        if not np.isfinite(samples).all():
            raise UnsupportedImage("the image holds NaN or infinities; replace them, for instance with np.nan_to_num.")
        low, high, extreme, least, most = np.percentile(samples, [*wanted, 0.0, 100.0])
    scale = max(high - low, (extreme - low) / SPARSE_RATIO)
    # Below this, differences are rounding of the numbers themselves.
    if scale <= 1e-6 * max(abs(low), abs(extreme)) or scale < np.finfo(np.float32).tiny:
        spread = float(most - least)
        scale = spread if spread > 1e-6 * max(abs(low), abs(extreme), np.finfo(np.float32).tiny) else 1.0
    return Normalisation(sign * float(low), sign * float(scale))


def _counted(pixels: npt.NDArray[np.integer[Any]], percentiles: list[float], sign: float) -> npt.NDArray[np.float64]:
    """Percentiles, lowest and highest of `sign` times integers of up to 16 bits: counted, five times as fast as sorted.

    As :func:`numpy.percentile` has them, linear between neighbours.
    """
    lowest = int(np.iinfo(pixels.dtype).min)
    # Read as unsigned, negative numbers come last.
    unsigned = pixels.view(np.dtype(f"u{pixels.dtype.itemsize}").newbyteorder(pixels.dtype.byteorder))
    counts = np.roll(np.bincount(unsigned.ravel(), minlength=1 << (8 * pixels.dtype.itemsize)), -lowest)
    levels = sign * (np.flatnonzero(counts) + lowest)
    reached = np.cumsum(counts[counts > 0])
    if sign < 0:
        levels, reached = levels[::-1], np.cumsum(counts[counts > 0][::-1])
    place = np.asarray([*percentiles, 0.0, 100.0]) / 100.0 * (pixels.size - 1)
    before, after = (levels[np.searchsorted(reached, at, side="right")] for at in (np.floor(place), np.ceil(place)))
    share, step = place - np.floor(place), after - before
    return np.asarray(np.where(share < 0.5, before + step * share, after - step * (1.0 - share)))


def thinned(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every n-th row and column of an image that is large; the two longest axes are those."""
    if pixels.size <= MOST_SAMPLES:
        return pixels
    step = math.ceil(math.sqrt(pixels.size / MOST_SAMPLES))
    longest = sorted(np.argsort(pixels.shape)[-2:])
    return pixels[tuple(slice(None, None, step) if axis in longest else slice(None) for axis in range(pixels.ndim))]
