"""The plane that a specimen lies in: a robust fit through the in-focus planes of its tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.errors import InputError, MetadataMissing
from refocus.focus.tiles import FocusMap

_ROUNDS = 30
# Tukey's constant: 95% as efficient as least squares where errors are normal.
_TUKEY = 4.685
_SIGMA_OF_MEDIAN_DEVIATION = 1.4826
# No tile's place is known better than that, so that exact fits still have a scale.
_SMALLEST_SPREAD_PLANES = 0.01


@dataclass(frozen=True, slots=True)
class Tilt:
    """A plane through a focal series: ``z(y, x) = z_at_origin + slope_y * y + slope_x * x``, in planes and pixels.

    Parameters
    ----------
    z_at_origin : float
        At the centre of pixel (0, 0), in planes from 0.
    slope_y, slope_x : float
        Planes a pixel.
    spread : float
        Robust standard deviation of the tiles around it, in planes: noise, and how uneven the specimen is.
    tiles : int
        How many tiles it rests on.
    """

    z_at_origin: float
    slope_y: float
    slope_x: float
    spread: float
    tiles: int

    def position_at(self, y_px: npt.ArrayLike, x_px: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """In-focus position at pixels, in planes; `y_px` and `x_px` broadcast."""
        return np.asarray(self.z_at_origin + self.slope_y * np.asarray(y_px) + self.slope_x * np.asarray(x_px))

    def angle_deg(self, *, z_step_um: float | None, pixel_size_um: float | None) -> float:
        """Angle between specimen and image plane, in degrees.

        Raises
        ------
        MetadataMissing
            If the z step or the pixel size is unknown.
        """
        if z_step_um is None or pixel_size_um is None:
            raise MetadataMissing("an angle needs the z step and the pixel size in um; one of them is unknown.")
        return float(np.degrees(np.arctan(np.hypot(self.slope_y, self.slope_x) * z_step_um / pixel_size_um)))


def fit_tilt(found: FocusMap, *, least_confidence: float = 0.2) -> Tilt:
    """Fit a plane through the tiles' in-focus positions, weighted by confidence and robust to tiles that are wrong.

    Least squares re-weighted by Tukey's biweight, started from Siegel's repeated medians, which withstand up to half
    of the tiles being wrong (A. F. Siegel, Biometrika 69 (1982) 242). Along an axis with one tile the slope is zero.

    Parameters
    ----------
    found : FocusMap
    least_confidence : float
        Tiles below are left out, as are those at an edge.

    Raises
    ------
    InputError
        If fewer tiles remain than the plane has unknowns.
    """
    trusted = (found.confidence >= least_confidence) & ~found.at_edge
    y, x = np.meshgrid(found.center_y_px, found.center_x_px, indexing="ij")
    y, x, z, weight = y[trusted], x[trusted], found.position[trusted], found.confidence[trusted]
    columns = [np.ones_like(y)]
    columns += [axis for axis in (y, x) if np.unique(axis).size > 1]
    if len(z) < len(columns):
        raise InputError(
            f"{len(z)} of {found.position.size} tiles have a peak to be trusted; a plane needs at least "
            f"{len(columns)}. Are the tiles larger than the specimen's structure, and does the series reach both "
            "sides of focus?"
        )
    design = np.stack(columns, axis=1)
    start = _repeated_medians(design, z)
    residual = z - design @ start
    spread = _spread(residual)
    solution: npt.NDArray[Any] = start
    for _ in range(_ROUNDS):
        inlier = np.clip(1 - (residual / (_TUKEY * spread)) ** 2, 0, None) ** 2
        root = np.sqrt(weight * inlier)
        solution = np.linalg.lstsq(design * root[:, None], z * root, rcond=None)[0]
        moved = np.abs(design @ solution - (z - residual)).max()
        residual = z - design @ solution
        spread = _spread(residual)
        if moved < _SMALLEST_SPREAD_PLANES / 10:
            break
    slopes = iter(solution[1:].tolist())
    slope_y, slope_x = (next(slopes) if np.unique(axis).size > 1 else 0.0 for axis in (y, x))
    return Tilt(float(solution[0]), slope_y, slope_x, spread, int(np.count_nonzero(trusted)))


def _repeated_medians(design: npt.NDArray[np.float64], z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # One slope after the other, the others' share taken out, until they agree: medians of medians of pairwise slopes.
    solution = np.zeros(design.shape[1])
    for _ in range(5):
        for k in range(1, design.shape[1]):
            rest = z - design @ solution + design[:, k] * solution[k]
            run = design[:, k][:, None] - design[:, k][None, :]
            slopes = np.where(run == 0, np.nan, (rest[:, None] - rest[None, :]) / np.where(run == 0, 1, run))
            solution[k] = float(np.median(np.nanmedian(slopes, axis=1)))
    solution[0] = float(np.median(z - design[:, 1:] @ solution[1:]))
    return solution


def _spread(residual: npt.NDArray[np.float64]) -> float:
    return max(float(np.median(np.abs(residual))) * _SIGMA_OF_MEDIAN_DEVIATION, _SMALLEST_SPREAD_PLANES)
