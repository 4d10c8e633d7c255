"""Tiles of defocused planes, each with the same place in the plane where that place is in focus."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.data.manifest import IngestSettings
from refocus.data.series import Series
from refocus.data.survey import Survey
from refocus.data.tiles import NEAREST_PLANES
from refocus.errors import InputError
from refocus.focus.alignment import Shift, align, shifts_onto
from refocus.focus.plane import InFocusPlane
from refocus.focus.tiles import FocusMap
from refocus.focus.tilt import Tilt, fit_tilt
from refocus.io.grid import Window

Image = npt.NDArray[Any]

_LEAST_CONFIDENCE = 0.2
# Below that a shift is the error of its measurement, and resampling would cost more sharpness than it restores.
_NO_DRIFT_PX = 0.1
# Half the length of the filter that moves planes by fractions of a pixel.
_FILTER_PX = 9


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One place in one plane and in its in-focus plane, in the units of the file."""

    window: Window
    plane: int
    pixels: Image
    target: Image
    planes_from_focus: float


@dataclass(slots=True)
class LeftOut:
    """What was not paired, and how much of it."""

    background: int = 0
    blank: int = 0
    at_edge: list[Window] = field(default_factory=list)
    saturated_targets: int = 0
    saturated: Counter[int] = field(default_factory=Counter)
    drifted: dict[int, float] = field(default_factory=dict)
    unlike: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Pairing:
    """The pairs of one series; what it says of them is complete once they have been taken.

    Parameters
    ----------
    series : Series
    survey : Survey
    settings : IngestSettings
    shows_nothing : callable
        Whether a target, shape (rows, columns) or (rows, columns, 3), is background.
    stays : callable
        Whether the tile there is among the few that stay although they show nothing.
    may_clip : bool
        Whether tiles that are bright to the limit are good ones, as brightfield's empty background.
    """

    series: Series
    survey: Survey
    settings: IngestSettings
    shows_nothing: Callable[[Image], bool]
    stays: Callable[[Window], bool]
    may_clip: bool
    left_out: LeftOut = field(default_factory=LeftOut)
    positions: list[float] = field(default_factory=list)
    largest_drift_px: float = 0.0
    largest_residual: float = 0.0

    def pairs(self) -> Iterator[Pair]:
        """Yield the pairs tile by tile, reading as many planes of as many tiles at once as may be held."""
        elsewhere = expected_positions(self.survey.tiles, self.survey.focus)
        found = self.survey.tiles
        own = np.where(_trusted(found) | found.at_edge, found.position, elsewhere)
        shifts = shifts_onto(self.survey.steps, self.survey.focus.index)
        margin_px = self._margin_px(shifts)
        planes = [z for z in range(self.series.planes) if z not in self.survey.copies]
        for rows, columns in self.survey.grid.blocks(self.series.column_px):
            around = self._widened(self.survey.grid.around(rows, columns), margin_px)
            held = dict(zip(planes, self.series.read_ahead((z, around) for z in planes), strict=True))
            for row in rows:
                for column in columns:
                    window = self.survey.grid.window(row, column)
                    tile = _Column(held, around, window, margin_px)
                    yield from self._tile(tile, float(own[row, column]), float(elsewhere[row, column]), shifts)
            # Before the next block is read: two of them would be twice what may be held.
            held.clear()

    def _tile(self, column: _Column, position: float, expected: float, shifts: list[Shift]) -> Iterator[Pair]:
        if self.series.blanks.share(column.window) > self.settings.maximum_blank_share:
            self.left_out.blank += 1
            return
        focus = self._plane_at(position)
        target = column.cut(focus)
        if self.shows_nothing(target):
            if not self.stays(column.window):
                self.left_out.background += 1
                return
            # Where there is nothing to see, a peak is chance.
            position, focus = expected, self._plane_at(expected)
            target = column.cut(focus)
        elif not 0 < round(position) < self.series.planes - 1:
            self.left_out.at_edge.append(column.window)
            return
        if self._is_saturated(target):
            self.left_out.saturated_targets += 1
            return
        # A plane that copies an earlier one is not there: the earlier is the nearest, and in focus.
        position = float(np.clip(position, focus - NEAREST_PLANES, focus + NEAREST_PLANES))
        self.positions.append(position)
        for z in column.planes:
            shift = self._shift(shifts, z, focus)
            if z == focus:
                yield Pair(column.window, z, target, target, z - position)
            elif self._can_be_paired(z, shift):
                pixels = column.cut(z, shift)
                if self._is_saturated(pixels):
                    self.left_out.saturated[z] += 1
                else:
                    yield Pair(column.window, z, pixels, target, z - position)

    def _plane_at(self, position: float) -> int:
        nearest = int(np.clip(round(position), 0, self.series.planes - 1))
        return self.survey.copies.get(nearest, nearest)

    def _shift(self, shifts: list[Shift], z: int, focus: int) -> Shift:
        # The worst step between two planes says whether the way can be trusted.
        way = self.survey.steps[min(z, focus) : max(z, focus)]
        residual = max((step.residual for step in way), default=0.0)
        return Shift(shifts[z].y_px - shifts[focus].y_px, shifts[z].x_px - shifts[focus].x_px, residual)

    def _can_be_paired(self, z: int, shift: Shift) -> bool:
        size_px = math.hypot(shift.y_px, shift.x_px)
        if shift.residual > self.settings.maximum_residual:
            self.left_out.unlike.add(z)
            return False
        if size_px > self.settings.maximum_drift_px:
            self.left_out.drifted[z] = max(size_px, self.left_out.drifted.get(z, 0.0))
            return False
        self.largest_drift_px = max(self.largest_drift_px, size_px)
        self.largest_residual = max(self.largest_residual, shift.residual)
        return True

    def _is_saturated(self, pixels: Image) -> bool:
        if self.may_clip or self.survey.full_scale is None:
            return False
        share = float(np.mean(pixels >= self.survey.full_scale))
        return share > self.settings.maximum_saturated_share

    def _margin_px(self, shifts: list[Shift]) -> int:
        # Between tiles in focus at different planes, drifts can add up.
        largest = max(math.hypot(shift.y_px, shift.x_px) for shift in shifts)
        if largest < _NO_DRIFT_PX / 2:
            return 0
        return math.ceil(min(2 * largest, self.settings.maximum_drift_px)) + _FILTER_PX

    def _widened(self, window: Window, margin_px: int) -> Window:
        top, left = max(window.y_px - margin_px, 0), max(window.x_px - margin_px, 0)
        bottom = min(window.y_px + window.height_px + margin_px, self.series.height_px)
        right = min(window.x_px + window.width_px + margin_px, self.series.width_px)
        return Window(top, left, bottom - top, right - left)


@dataclass(frozen=True, slots=True, eq=False)
class _Column:
    """One tile's place through all planes, in a block that has been read."""

    held: dict[int, Image]
    around: Window
    window: Window
    margin_px: int

    @property
    def planes(self) -> list[int]:
        return list(self.held)

    def cut(self, z: int, shift: Shift | None = None) -> Image:
        """Return the tile in plane `z`, moved by `shift`."""
        inner = self.window.within(self.around)
        if shift is None or math.hypot(shift.y_px, shift.x_px) < _NO_DRIFT_PX:
            return self.held[z][inner.slices]
        top, left = max(inner.y_px - self.margin_px, 0), max(inner.x_px - self.margin_px, 0)
        stop_y, stop_x = (s.stop + self.margin_px for s in inner.slices)
        moved = align(self.held[z][top:stop_y, left:stop_x], shift)
        y, x = inner.y_px - top, inner.x_px - left
        return moved[y : y + inner.height_px, x : x + inner.width_px]


def expected_positions(tiles: FocusMap, focus: InFocusPlane) -> npt.NDArray[np.float64]:
    """Return where tiles that do not say so themselves are in focus, in planes, shape (rows, columns).

    On the plane through the tiles that can be trusted; where they are too few for one, where the median of them is, or
    the whole.
    """
    tilt = tilt_of(tiles)
    if tilt is not None:
        return tilt.position_at(tiles.center_y_px[:, None], tiles.center_x_px[None, :])
    trusted = _trusted(tiles)
    known = float(np.median(tiles.position[trusted])) if trusted.any() else focus.position
    return np.full(tiles.position.shape, known)


def tilt_of(tiles: FocusMap) -> Tilt | None:
    """Fit the plane that the specimen lies in; None where too few tiles can be trusted."""
    try:
        return fit_tilt(tiles, least_confidence=_LEAST_CONFIDENCE)
    except InputError:
        return None


def _trusted(tiles: FocusMap) -> npt.NDArray[np.bool_]:
    return (tiles.confidence >= _LEAST_CONFIDENCE) & ~tiles.at_edge
