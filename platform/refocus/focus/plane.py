"""The in-focus plane of a focal series: its sharpness plane by plane, and where that peaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.errors import InputError
from refocus.focus.measures import DEFAULT_MEASURE, INTENSITY_POWER, measure_named

# A peak is fitted where the curve is above its top less this share of its height; lower down it is no parabola.
_FITTED_SHARE = 0.3
_NOISE_IN_FIT = 4.0
# Third differences of white noise have a variance of 1 + 9 + 9 + 1.
_THIRD_DIFFERENCE_GAIN = np.sqrt(20.0)
_SIGMA_OF_MEDIAN_DEVIATION = 1.4826
# Brighter or darker than that within one series is another scene, not a lamp that drifts.
_LARGEST_DRIFT = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class InFocusPlane:
    """Where a focal series is sharpest.

    Parameters
    ----------
    index : int
        The plane nearest to `position`, from 0.
    position : float
        Vertex of a parabola through the top of the curve, in planes from 0.
    confidence : float
        From 0 (no peak, or one that cannot be trusted) to 1: how far the curve's height stands above its noise, times
        how far the next best peak stays behind. Zero at an edge.
    at_edge : bool
        The curve is highest at the first or last plane: focus may lie outside the series.
    curve : ndarray, shape (planes,)
        The measure of each plane.
    """

    index: int
    position: float
    confidence: float
    at_edge: bool
    curve: npt.NDArray[np.float64]


def focus_curve(planes: Iterable[npt.NDArray[Any]], measure: str = DEFAULT_MEASURE) -> npt.NDArray[np.float64]:
    """Measure planes one after the other, holding one at a time.

    Drift of the illumination is taken out: each value is brought to what the median plane's brightness would give.
    That holds where defocus spreads light without losing it.

    Parameters
    ----------
    planes : iterable of ndarray, shape (Y, X) or (Y, X, S)
        Any real dtype; colour is measured on the mean of its samples.
    measure : str
        A name of `MEASURES`.

    Returns
    -------
    ndarray, shape (planes,)

    Raises
    ------
    InputError
        If there is no plane, planes differ in shape, or one holds NaN.
    """
    measured = measure_named(measure)
    values: list[float] = []
    means: list[float] = []
    shape: tuple[int, ...] | None = None
    for number, plane in enumerate(planes):
        if shape is not None and plane.shape != shape:
            raise InputError(f"plane {number} has shape {plane.shape} and those before it {shape}; expected one shape.")
        shape = plane.shape
        grey = as_grey(plane)
        values.append(measured(grey))
        means.append(float(np.mean(grey, dtype=np.float64)))
    if not values:
        raise InputError("a focus curve got no plane; expected at least one.")
    return np.asarray(values) * drift_correction(np.asarray(means), measure)


def as_grey(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a plane (Y, X) as it is and one of colour (Y, X, S) as the mean of its samples."""
    return plane.mean(axis=-1, dtype=np.float32) if plane.ndim == 3 else plane


def drift_correction(means: npt.NDArray[np.float64], measure: str) -> npt.NDArray[np.float64]:
    """Return what each plane's measure must be multiplied by to undo a drift of brightness.

    Parameters
    ----------
    means : ndarray, shape (planes, ...)
        Mean intensity of each plane. Where they are not all positive or spread too wide, nothing is corrected.
    """
    lowest, highest = means.min(axis=0), means.max(axis=0)
    drifts = (lowest > 0) & (highest <= _LARGEST_DRIFT * lowest)
    ratio = np.median(means, axis=0) / np.where(drifts, means, 1.0)
    return np.where(drifts, ratio ** INTENSITY_POWER[measure], 1.0)


def peak_of(curve: npt.ArrayLike) -> InFocusPlane:
    """Find where a focus curve peaks, between planes.

    The parabola is fitted to the planes around the highest one that are above 70% of the curve's height, more of
    them where the curve is noisy.

    Parameters
    ----------
    curve : array_like, shape (planes,)

    Raises
    ------
    InputError
        If the curve is empty, not one-dimensional or not finite.
    """
    values = np.array(curve, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise InputError(f"a focus curve of shape {values.shape} came; expected (planes,), at least one, all finite.")
    top = int(values.argmax())
    height = float(np.ptp(values))
    last = len(values) - 1
    if top in (0, last) or height == 0:
        return InFocusPlane(top, float(top), 0.0, True, values)
    noise = _noise_of(values)
    threshold = values[top] - min(max(_FITTED_SHARE * height, _NOISE_IN_FIT * noise), height)
    first, stop = _run_above(values, top, threshold)
    position = _vertex(values, first, stop, top)
    index = round(position)
    at_edge = index in (0, last)
    confidence = 0.0 if at_edge else _clarity(height, noise, len(values)) * (1 - _rival(values, first, stop) / height)
    return InFocusPlane(index, position, float(np.clip(confidence, 0, 1)), at_edge, values)


def find_in_focus_plane(stack_zyx: npt.NDArray[Any], *, measure: str = DEFAULT_MEASURE) -> InFocusPlane:
    """Find the sharpest plane of a series in memory, shape (Z, Y, X) or (Z, Y, X, S).

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.ndimage import gaussian_filter
    >>> texture = np.random.default_rng(0).random((64, 64))
    >>> stack = np.stack([gaussian_filter(texture, 0.5 + abs(z - 4)) for z in range(9)])
    >>> find_in_focus_plane(stack).index
    4
    """
    if stack_zyx.ndim not in (3, 4):
        raise InputError(f"a stack of shape {stack_zyx.shape} came; expected (Z, Y, X), or (Z, Y, X, S) in colour.")
    return peak_of(focus_curve(stack_zyx, measure))


def _noise_of(values: npt.NDArray[np.float64]) -> float:
    # A smooth peak has small third differences, noise has large ones; the median forgives the peak's tip.
    if len(values) < 4:
        return 0.0
    deviations = np.abs(np.diff(values, 3))
    return float(np.median(deviations) * _SIGMA_OF_MEDIAN_DEVIATION / _THIRD_DIFFERENCE_GAIN)


def _run_above(values: npt.NDArray[np.float64], top: int, threshold: float) -> tuple[int, int]:
    first, stop = top, top + 1
    while first > 0 and values[first - 1] >= threshold:
        first -= 1
    while stop < len(values) and values[stop] >= threshold:
        stop += 1
    return min(first, top - 1), max(stop, top + 2)


def _vertex(values: npt.NDArray[np.float64], first: int, stop: int, top: int) -> float:
    z = np.arange(first, stop) - top
    bend, slope, _ = np.polyfit(z, values[first:stop], 2)
    if bend >= 0:
        return float(top)
    return float(np.clip(top - slope / (2 * bend), first, stop - 1))


def _clarity(height: float, noise: float, planes: int) -> float:
    # A curve of nothing but noise spans about this many of its standard deviations.
    span_of_noise = 2 * np.sqrt(2 * np.log(planes))
    return max(0.0, 1 - span_of_noise * noise / height)


def _rival(values: npt.NDArray[np.float64], first: int, stop: int) -> float:
    # How high the curve climbs again after having left the peak, on the better side.
    best = 0.0
    for side in (values[:first][::-1], values[stop:]):
        if side.size:
            best = max(best, float(np.max(side - np.minimum.accumulate(side))))
    return best
