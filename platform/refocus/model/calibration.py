"""Intervals that hold: what the network's scale must be multiplied by so that 90% of pixels are covered.

Split conformal prediction (Papadopoulos et al. 2002; Angelopoulos and Bates, "A Gentle Introduction to Conformal
Prediction", 2021): on images that no training has seen, each pixel's error over its predicted scale is a score, and the
interval is the 90% quantile of the scores times the scale. Errors far from focus are of another kind than near it, so
there is one factor for each band of the *predicted* blur, which is known when the image is restored.

Quantiles of those bands would not cover evenly over the *true* depth: where a prediction saturates, the deepest images
share a band with shallower ones and are covered too little (84% at 10 um, 94% in focus). Factors are therefore
balanced: moved together until each true depth of the calibration images is covered alike.

What it promises: 90% of pixels on average over specimens that are exchangeable with those of the calibration. What it
does not: 90% in every image, or for microscopes unlike any of them. Coverage is therefore measured and published.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import optimize, special

from refocus.errors import InputError

Values = npt.NDArray[Any]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

#: Fewer specimens say nothing about new ones.
FEWEST_SPECIMENS = 5
#: Of a Laplace distribution, which the scale head is trained for: 90% lie within ln(10) scales.
LAPLACE_FACTOR_90 = math.log(10.0)
#: Of the smooth step that stands for being covered or not while factors are balanced, in a factor's logarithm. What is
#: smoothed is covered too well: left out in turn, 15 specimens by 91.1% at 0.15, 90.5% at 0.1 and 90.1% at 0.05. Half
#: a point is left on the safe side.
_STEP = 0.1
_EVENNESS = 1e-3


class Calibration(BaseModel):
    """Half width of the interval over the predicted scale, by predicted blur.

    Parameters
    ----------
    level : float
        Share of pixels inside.
    blur_radius_px : tuple of float
        Centres of the bands of predicted blur, increasing.
    factor : tuple of float
        One a band; linear between centres, constant beyond the first and last.
    specimens : int
        How many specimens it was fitted on; 0 for the Laplace distribution taken at its word.
    pixels : int

    Examples
    --------
    >>> calibration = Calibration(blur_radius_px=(0.0, 10.0), factor=(2.0, 3.0), specimens=20, pixels=100000)
    >>> calibration.factor_at(5.0)
    2.5
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Annotated[float, Field(gt=0, lt=1)] = 0.9
    blur_radius_px: Annotated[tuple[float, ...], Field(min_length=1)] = (0.0,)
    factor: Annotated[tuple[Positive, ...], Field(min_length=1)] = (LAPLACE_FACTOR_90,)
    specimens: Annotated[int, Field(ge=0)] = 0
    pixels: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _knots_increase(self) -> Self:
        if len(self.blur_radius_px) != len(self.factor):
            raise ValueError(f"{len(self.blur_radius_px)} bands but {len(self.factor)} factors; expected one a band.")
        if any(b <= a for a, b in zip(self.blur_radius_px, self.blur_radius_px[1:], strict=False)):
            raise ValueError(f"blur_radius_px is {self.blur_radius_px}; expected increasing numbers.")
        return self

    @property
    def fitted(self) -> bool:
        """False where the factor is the Laplace distribution's, not measured."""
        return self.specimens > 0

    def factor_at(self, blur_radius_px: float) -> float:
        """Return half width over scale at a predicted blur."""
        return float(np.interp(blur_radius_px, self.blur_radius_px, self.factor))

    def half_width(self, scale: Values, blur_radius_px: Values | float) -> Values:
        """Return half of the interval at each pixel.

        Parameters
        ----------
        scale : ndarray
            Laplace scale in the image's units: ``exp(log_scale)`` times the normalisation's scale.
        blur_radius_px : float or ndarray
            Predicted blur, of the image or, broadcastable, of each pixel.

        Returns
        -------
        ndarray, float32, shape of `scale`
        """
        factor = np.interp(blur_radius_px, self.blur_radius_px, self.factor).astype(np.float32)
        return np.asarray(scale, np.float32) * factor

    def half_width_of(self, scale: Values, blur_maps: Values, *, stride_px: int, axes: str) -> Values:
        """Return half of the interval of a whole restoration.

        Parameters
        ----------
        scale : ndarray
            ``Restoration.scale``: shape and axes of the image.
        blur_maps : ndarray, shape [planes, h, w]
            ``Restoration.blur_radius_px``, one map for each plane in order.
        stride_px : int
            Pixels a side of one entry of a map.
        axes : str
            Of the image, such as ``"YX"`` or ``"CYX"``.

        Returns
        -------
        ndarray, float32, shape of `scale`
        """
        rows, columns = axes.index("Y"), axes.index("X")
        stacked = np.moveaxis(scale, (rows, columns), (-2, -1))
        height, width = stacked.shape[-2:]
        planes = stacked.reshape(-1, height, width)
        if len(planes) % len(blur_maps):
            raise InputError(f"{len(blur_maps)} blur maps for {len(planes)} planes of axes {axes!r}; they do not fit.")
        # Colours that were restored together share a map.
        together = len(planes) // len(blur_maps)
        half = np.empty(planes.shape, np.float32)
        for index, plane in enumerate(planes):
            blur = enlarged(blur_maps[index // together], stride_px, (height, width))
            half[index] = self.half_width(plane, blur)
        return np.moveaxis(half.reshape(stacked.shape), (-2, -1), (rows, columns))


def enlarged(blur_map: Values, stride_px: int, shape: tuple[int, int]) -> Values:
    """Interpolate a map [h, w], whose entries stand for squares of pixels, to every pixel: linear, no steps."""
    out = np.asarray(blur_map, np.float32)
    for axis, length in enumerate(shape):
        place = (np.arange(length) + 0.5) / stride_px - 0.5
        lower = np.clip(np.floor(place).astype(int), 0, out.shape[axis] - 1)
        upper = np.minimum(lower + 1, out.shape[axis] - 1)
        share = np.clip(place - lower, 0, 1).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None, :]
        out = np.take(out, lower, axis) * (1 - share) + np.take(out, upper, axis) * share
    return out


@dataclass(frozen=True, slots=True)
class CalibrationSample:
    """Pixels of one image of the calibration split.

    Attributes
    ----------
    specimen : str
    error : ndarray, shape (N,)
        Absolute difference between output and truth, in any unit.
    scale : ndarray, shape (N,)
        Predicted, in the same unit.
    blur_radius_px : ndarray, shape (N,)
        Predicted at each pixel.
    true_blur_px : float or None
        Of the whole image, where it is known.
    """

    specimen: str
    error: Values
    scale: Values
    blur_radius_px: Values
    true_blur_px: float | None = None


def fit_calibration(samples: Iterable[CalibrationSample], *, level: float = 0.9, bands: int = 8) -> Calibration:
    """Find the factor of each band of predicted blur.

    Bands hold equal numbers of pixels. Everywhere each specimen weighs the same, however many of its pixels are there:
    specimens are exchangeable, pixels of one specimen are not. The textbook's finite-sample correction,
    ``ceil((n + 1) level) / n``, is for one score a specimen and a promise on each new one; here a share of pixels is
    promised on average, so it is left out, and coverage is measured on specimens left out.

    Where the true blur is known, factors start at their band's quantile and are balanced over true depths.

    Raises
    ------
    InputError
        If there are no samples or too few specimens to promise anything.
    """
    kept = list(samples)
    specimens = sorted({s.specimen for s in kept})
    if len(specimens) < FEWEST_SPECIMENS:
        raise InputError(
            f"{len(specimens)} specimens to calibrate on; expected at least {FEWEST_SPECIMENS} to say anything about "
            "new ones."
        )
    score = np.concatenate([np.abs(s.error) / np.maximum(s.scale, 1e-12) for s in kept]).astype(np.float64)
    blur = np.concatenate([np.broadcast_to(s.blur_radius_px, s.error.shape) for s in kept]).astype(np.float64)
    owner = np.concatenate([np.full(s.error.shape, specimens.index(s.specimen)) for s in kept])
    if not (np.isfinite(score).all() and np.isfinite(blur).all()):
        raise InputError("errors, scales or blurs to calibrate on hold NaN or infinity.")
    edges = np.unique(np.quantile(blur, np.linspace(0, 1, bands + 1)))
    band = np.searchsorted(edges[1:-1], blur, side="right")
    factor_at: dict[float, float] = {}
    for index in np.unique(band):
        inside = band == index
        centre = round(float(np.median(blur[inside])), 4)
        factor_at.setdefault(centre, max(_weighted_quantile(score[inside], owner[inside], level), 1e-6))
    centres, factors = np.array(list(factor_at)), np.array(list(factor_at.values()))
    depths = [s.true_blur_px for s in kept]
    known = [depth for depth in depths if depth is not None]
    if len(known) == len(depths) and len(factors) > 1:
        depth = np.concatenate([np.full(s.error.shape, round(d, 3)) for s, d in zip(kept, known, strict=True)])
        factors = _balanced(centres, factors, score, blur, owner, depth, level)
    return Calibration(
        level=level,
        blur_radius_px=tuple(float(c) for c in centres),
        factor=tuple(round(float(factor), 6) for factor in factors),
        specimens=len(specimens),
        pixels=len(score),
    )


def _balanced(
    centres: Values, factors: Values, score: Values, blur: Values, owner: Values, depth: Values, level: float
) -> Values:
    """Move factors until the coverage of each true depth is `level`: least squares over depths.

    Coverage is a step in the factor; a logistic step of `_STEP` in its logarithm has a slope to follow. A small penalty
    on differences between neighbours decides where depths alone do not.
    """
    hats = np.stack([np.interp(blur, centres, one) for one in np.eye(len(centres))], axis=1)
    logarithm = np.log(np.maximum(score, 1e-4))
    group = np.unique(depth, return_inverse=True)[1]
    of_specimen = np.unique(group * (owner.max() + 1) + owner, return_inverse=True)[1]
    weight = 1.0 / np.bincount(of_specimen)[of_specimen]
    weight /= np.bincount(group, weight)[group]
    difference = np.diff(np.eye(len(centres)), axis=0)

    def miss(log_factors: Values) -> tuple[float, Values]:
        inside = special.expit((hats @ log_factors - logarithm) / _STEP)
        gap = np.bincount(group, weight * inside) - level
        slope = 2 * gap[group] * weight * inside * (1 - inside) / _STEP
        step = difference @ log_factors
        value = float(gap @ gap + _EVENNESS * step @ step)
        return value, hats.T @ slope + 2 * _EVENNESS * difference.T @ step

    found = optimize.minimize(miss, np.log(factors), jac=True, method="L-BFGS-B")
    return np.exp(found.x)


def _weighted_quantile(score: Values, owner: Values, level: float) -> float:
    """Quantile over pixels in which every owner has the same total weight."""
    counts = np.bincount(owner)
    weight = 1.0 / counts[owner]
    order = np.argsort(score)
    share = np.cumsum(weight[order]) / weight.sum()
    return float(score[order][min(int(np.searchsorted(share, level)), len(score) - 1)])


def coverage(error: Values, half_width: Values) -> float:
    """Share of pixels whose absolute error is within the half width."""
    return float(np.mean(np.abs(error) <= half_width))
