"""One pass over a focal series: where each tile is in focus, how planes drift, which of them are copies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.data.series import Series
from refocus.focus.alignment import Shift, binned, binning, shift_of_binned
from refocus.focus.measures import measure_named
from refocus.focus.plane import InFocusPlane, as_grey, drift_correction, peak_of
from refocus.focus.tiles import FocusMap, map_of_curves
from refocus.io.grid import TileGrid, Window

# Of cameras of 8, 10, 12, 14 and 16 bit: a series whose brightest pixel is exactly one of these is clipped.
_FULL_SCALES = (255, 1023, 4095, 16383, 65535)


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What one reading of every plane has shown.

    Parameters
    ----------
    grid : TileGrid
    focus : InFocusPlane
        Of the whole plane: the mean of its tiles' curves.
    tiles : FocusMap
        Of each tile of `grid`.
    steps : list of Shift
        Of each plane onto the next.
    copies : dict
        Planes that equal an earlier one to the bit, by that one's number.
    full_scale : int or None
        Where the camera clips; None where no pixel reached such a value.
    """

    grid: TileGrid
    focus: InFocusPlane
    tiles: FocusMap
    steps: list[Shift]
    copies: dict[int, int]
    full_scale: int | None


def survey(series: Series, *, tile_px: int, measure: str) -> Survey:
    """Read every plane once, in parts where it is large.

    Raises
    ------
    InputError
        If a plane cannot be read.
    """
    grid = TileGrid.over(series.height_px, series.width_px, tile_px)
    bins = binning(series.height_px, series.width_px)
    parts = [_Part.of(grid, rows, columns, bins) for rows, columns in grid.blocks(series.window_px)]
    looks = series.read_ahead((z, part.window) for z in range(series.planes) for part in parts)
    curves = np.empty((series.planes, len(grid.tops_px), len(grid.lefts_px)))
    means = np.empty(series.planes)
    steps: list[Shift] = []
    seen: dict[bytes, int] = {}
    copies: dict[int, int] = {}
    highest = 0.0
    before: npt.NDArray[np.float32] | None = None
    for z in range(series.planes):
        coarse = np.empty((series.height_px // bins, series.width_px // bins), np.float32)
        digest = hashlib.sha256()
        for part in parts:
            pixels = next(looks)
            grey = as_grey(pixels)
            part.measure(grey, curves[z], measure)
            part.put_coarse(grey, coarse)
            digest.update(np.ascontiguousarray(pixels).data)
            highest = max(highest, float(pixels.max()))
        means[z] = float(coarse.mean(dtype=np.float64))
        if (first := seen.setdefault(digest.digest(), z)) != z:
            copies[z] = first
        if before is not None:
            steps.append(shift_of_binned(before, coarse, bins))
        before = coarse
    curves *= drift_correction(means, measure)[:, None, None]
    clips = series.dtype.kind == "u" and highest in _FULL_SCALES
    return Survey(
        grid=grid,
        focus=peak_of(curves.mean(axis=(1, 2))),
        tiles=map_of_curves(
            curves,
            np.asarray(grid.tops_px) + (grid.height_px - 1) / 2,
            np.asarray(grid.lefts_px) + (grid.width_px - 1) / 2,
        ),
        steps=steps,
        copies=copies,
        full_scale=int(highest) if clips else None,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """Some tiles of a plane, with the pixels to their upper left that complete a bin which a neighbour began."""

    grid: TileGrid
    rows: range
    columns: range
    window: Window
    bins: int

    @classmethod
    def of(cls, grid: TileGrid, rows: range, columns: range, bins: int) -> _Part:
        tiles = grid.around(rows, columns)
        top, left = tiles.y_px // bins * bins, tiles.x_px // bins * bins
        bottom, right = tiles.y_px + tiles.height_px, tiles.x_px + tiles.width_px
        return cls(grid, rows, columns, Window(top, left, bottom - top, right - left), bins)

    def measure(self, grey: npt.NDArray[Any], into: npt.NDArray[np.float64], measure: str) -> None:
        measured = measure_named(measure)
        for row in self.rows:
            for column in self.columns:
                tile = self.grid.window(row, column).within(self.window)
                into[row, column] = measured(grey[tile.slices])

    def put_coarse(self, grey: npt.NDArray[Any], into: npt.NDArray[np.float32]) -> None:
        found = binned(grey, self.bins)
        top, left = self.window.y_px // self.bins, self.window.x_px // self.bins
        into[top : top + found.shape[0], left : left + found.shape[1]] = found
