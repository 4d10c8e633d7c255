"""The in-focus plane tile by tile: specimens are tilted and uneven, and focus is not one plane for all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.errors import ConfigurationError, InputError
from refocus.focus.measures import DEFAULT_MEASURE, measure_named
from refocus.focus.plane import as_grey, drift_correction, peak_of

_SMALLEST_TILE_PX = 16


@dataclass(frozen=True, slots=True, eq=False)
class FocusMap:
    """Where each tile of a focal series is sharpest; arrays have shape (rows, columns).

    Parameters
    ----------
    position : ndarray
        In planes from 0, between planes.
    confidence : ndarray
        From 0 to 1, as of `InFocusPlane`; 0 where the peak is at an edge.
    at_edge : ndarray of bool
    center_y_px, center_x_px : ndarray, shapes (rows,) and (columns,)
        Tile centres; pixel centres have whole numbers.
    curves : ndarray, shape (planes, rows, columns)
    """

    position: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    at_edge: npt.NDArray[np.bool_]
    center_y_px: npt.NDArray[np.float64]
    center_x_px: npt.NDArray[np.float64]
    curves: npt.NDArray[np.float64]


def focus_map(planes: Iterable[npt.NDArray[Any]], *, tile_px: int = 128, measure: str = DEFAULT_MEASURE) -> FocusMap:
    """Find each tile's in-focus plane, holding one plane at a time.

    Tiles do not overlap and differ in size by at most a pixel, so that they cover the whole plane. Drift of the
    illumination is taken out as in `focus_curve`, from the mean of the whole plane: a tile's own mean changes with
    defocus, for its light spills over to its neighbours.

    Parameters
    ----------
    planes : iterable of ndarray, shape (Y, X) or (Y, X, S)
    tile_px : int
        About the side of a tile, at least 16. A tile that is smaller than the blur sees only its neighbours' light.
    measure : str
        A name of `MEASURES`.

    Raises
    ------
    InputError
        If there is no plane, planes differ in shape, or one holds NaN.
    ConfigurationError
        If a tile is too small.
    """
    if tile_px < _SMALLEST_TILE_PX:
        raise ConfigurationError(f"tile_px is {tile_px}; expected at least {_SMALLEST_TILE_PX}.")
    measured = measure_named(measure)
    shape: tuple[int, ...] | None = None
    rows, columns = np.zeros(2, int), np.zeros(2, int)
    values: list[npt.NDArray[np.float64]] = []
    means: list[float] = []
    for number, plane in enumerate(planes):
        grey = as_grey(plane)
        if shape is None:
            shape = grey.shape
            rows, columns = (_borders(length, tile_px) for length in shape)
        elif grey.shape != shape:
            raise InputError(f"plane {number} has shape {plane.shape} and those before it {shape}; expected one shape.")
        values.append(
            np.array(
                [
                    [measured(grey[top:bottom, left:right]) for left, right in _pairs(columns)]
                    for top, bottom in _pairs(rows)
                ]
            )
        )
        means.append(float(np.mean(grey, dtype=np.float64)))
    if not values:
        raise InputError("a focus map got no plane; expected at least one.")
    curves = np.stack(values) * drift_correction(np.asarray(means), measure)[:, None, None]
    return map_of_curves(curves, (rows[:-1] + rows[1:] - 1) / 2, (columns[:-1] + columns[1:] - 1) / 2)


def map_of_curves(
    curves: npt.NDArray[np.float64], center_y_px: npt.NDArray[np.float64], center_x_px: npt.NDArray[np.float64]
) -> FocusMap:
    """Find the peaks of curves that were measured tile by tile.

    Parameters
    ----------
    curves : ndarray, shape (planes, rows, columns)
        Drift of the illumination taken out.
    center_y_px, center_x_px : ndarray, shapes (rows,) and (columns,)
    """
    peaks = [[peak_of(curve) for curve in row] for row in np.moveaxis(curves, 0, -1)]
    return FocusMap(
        position=np.array([[peak.position for peak in row] for row in peaks]),
        confidence=np.array([[peak.confidence for peak in row] for row in peaks]),
        at_edge=np.array([[peak.at_edge for peak in row] for row in peaks]),
        center_y_px=center_y_px,
        center_x_px=center_x_px,
        curves=curves,
    )


def _borders(length: int, tile_px: int) -> npt.NDArray[np.int_]:
    return np.linspace(0, length, max(1, round(length / tile_px)) + 1).round().astype(int)


def _pairs(borders: npt.NDArray[np.int_]) -> Iterable[tuple[int, int]]:
    return zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)
