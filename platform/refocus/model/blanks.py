"""Pixels that show no specimen: padding, cut-outs and scale bars, dead lines, hot and dead pixels.

They were never blurred, so their edges look like detail in focus and mislead all that reads a blur. Padding and
overlays have one grey level, lie side by side, and end within a pixel or two, which an image out of focus never does;
a hot or dead pixel stands out from all its neighbours. By that they are told, plane by plane. What is made of them is
in :mod:`refocus.model.specimen`, what it is worth in docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

#: Alike over a square of this side, or a run of this length along a row or column: that is flat.
SQUARE_PX, RUN_PX = 3, 16
#: An edge is complete at the one distance if there is hardly more of it at the other. Interpolation takes one pixel.
_NEAR_PX, _FAR_PX, _COMPLETE = 2, 4, 0.8
#: Edges tell where what lies beyond differs by this share of the image's range, and so many times what neighbours do.
_LEAST_SHARE, _LEAST_DIFFERENCES = 0.02, 4.0
#: So many of a level's edges must tell; levels with the most are judged.
_LEAST_EDGES, _MOST_LEVELS = 16, 8
#: A spike lies as far beyond its neighbours as this times their range, which a point of light never does, and this
#: times a telling step, which noise on clipped ground never does; so few of them in a plane may be chance.
SPIKE, SPIKE_STEPS, _LEAST_SPIKES = 6.0, 3.0, 4
#: So near to blank pixels others may be mixed with them.
_MIXED_PX = 2
#: What tells of a pixel lies within this distance.
REACH_PX = RUN_PX + _MIXED_PX
#: Pixels looked at at a time; edges of each that are remembered, and pixels that what tells is judged by.
_PIXELS, _REMEMBERED, _SAMPLES = 2_000_000, 20_000, 200_000


class Rows(Protocol):
    """A plane [C, Y, X] of which some rows are read at a time: an array, a memory map, or part of a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, rows and columns."""

    def __getitem__(self, where: tuple[slice, slice], /) -> Pixels:
        """All channels of some rows."""


@dataclass(frozen=True, eq=False)
class Blanks:
    """What of a plane shows no specimen; false where all of it does.

    Parameters
    ----------
    levels : ndarray, shape [n, C]
        Grey levels, or colours, of padding and overlays.
    spikes : int
        Hot and dead pixels.
    telling_step : float
        By how much pixels must differ to tell anything, in the plane's units.
    white : float
        The plane's highest value where an overlay has it in all channels, else infinite.
    """

    levels: Pixels
    spikes: int
    telling_step: float
    white: float = math.inf

    def __bool__(self) -> bool:
        return len(self.levels) > 0 or self.spikes > 0

    def among(self, some: Pixels) -> Mask:
        """Which of some rows and columns of the plane [C, Y, X] are of a blank level, or spikes."""
        return self.of_level(some) | spikes(some, self.telling_step) if self.spikes else self.of_level(some)

    def of_level(self, pixels: Pixels) -> Mask:
        """Which pixels [C, ...] have one of the levels."""
        mask = np.zeros(pixels.shape[1:], bool)
        for level in self.levels:
            mask |= (pixels == level.reshape(-1, *(1,) * (pixels.ndim - 1))).all(0)
        return mask

    def over(self, block: Pixels) -> Mask:
        """Which pixels of a part of the plane [C, Y, X] are blank, or mixed with what is."""
        mask = np.zeros(block.shape[1:], bool)
        if len(self.levels):
            # Letters are too thin to be flat; of an overlay's white hardly anything else is.
            mask |= _grown(self.of_level(block) & (flat(block) | (block >= self.white).all(0)), _MIXED_PX)
        if self.spikes:
            mask |= spikes(block, self.telling_step)
        return mask

    def bands(self, plane: Rows) -> Iterator[tuple[slice, Mask]]:
        """Which pixels of the plane are blank, or mixed with what is: some rows at a time, and which rows these are."""
        for rows, block, own in _bands(plane, REACH_PX):
            yield rows, self.over(block)[own]


def find_blanks(plane: Rows, screen: Callable[[float], tuple[Mask, int]] | None = None) -> Blanks:
    """Look through a plane [C, Y, X].

    `screen` is told the telling step and says beforehand near which rows anything may be flat, and how many spikes
    there are (:func:`refocus.model.blanks_screen.screened`).

    Where flat places of a blank level end at something that is not as dark, or bright, it is all there within two
    pixels. Flat ground and saturated places end slowly, as far as the image is out of focus.
    """
    step = _telling_step(plane)
    edges: list[tuple[Pixels, Pixels, Pixels]] = []
    reach_px = RUN_PX + _FAR_PX
    near_flat, count = (None, 0) if screen is None else screen(step)
    for rows, block, own in _bands(plane, reach_px):
        if near_flat is None or near_flat[max(rows.start - reach_px, 0) : rows.stop + reach_px].any():
            edges += _edges(block, own, step)
        if near_flat is None:
            count += int(np.count_nonzero(spikes(block, step)[own]))
    levels = _levels(edges) if edges else np.empty((0, plane.shape[0]))
    highest = max(float(block.max()) for _, block, _ in _bands(plane, 0)) if len(levels) else math.inf
    white = highest if (levels >= highest).all(1).any() else math.inf
    return Blanks(levels, count if count >= _LEAST_SPIKES else 0, step, white)


def said_of(blanks: Iterable[Blanks]) -> str:
    """What several planes' blanks are, in words; empty where there are none.

    Examples
    --------
    >>> said_of([Blanks(np.array([[0], [255]]), 12, 5.0), Blanks(np.array([[0]]), 0, 5.0)])
    'level 0, level 255, 12 hot or dead pixels'
    >>> said_of([Blanks(np.array([[255, 255, 255]]), 0, 5.0)])
    'level 255/255/255'
    """
    blanks = list(blanks)
    levels = sorted({tuple(level) for plane in blanks for level in plane.levels.tolist()})
    said = ["level " + "/".join(f"{value:.12g}" for value in level) for level in levels]
    count = sum(plane.spikes for plane in blanks)
    return ", ".join([*said, f"{count} hot or dead pixels"] if count else said)


def flat(block: Pixels) -> Mask:
    """Pixels of [C, Y, X] amid others of the same level: in a square of 3 px or in a run of 16, shape [Y, X]."""
    mask = np.zeros(block.shape[1:], bool)
    across, down = _alike(block[:, :, 1:], block[:, :, :-1]), _alike(block[:, 1:], block[:, :-1])
    if across.any() and down.any():
        three = across[:, 1:] & across[:, :-1]
        square = three[2:] & three[1:-1] & three[:-2] & down[1:, 1:-1] & down[:-1, 1:-1]
        if square.any():
            mask[1:-1, 1:-1] = square
            mask = _grown(mask, SQUARE_PX // 2)
    return mask | _runs(across, 1) | _runs(down, 0)


def spikes(block: Pixels, step: float) -> Mask:
    """Single pixels of [C, Y, X] that stand out from all eight neighbours by far more than these differ, [Y, X]."""
    mask = np.zeros(block.shape[1:], bool)
    if min(mask.shape) < 3:
        return mask
    values: Pixels = block.astype(np.float32 if block.dtype.itemsize <= 2 or block.dtype == np.float32 else np.float64)
    # Whatever stands out from all stands out from left and right, which is soon seen.
    bend = 2.0 * values[:, 1:-1, 1:-1] - values[:, 1:-1, :-2] - values[:, 1:-1, 2:]
    y, x = np.nonzero((np.abs(bend, out=bend) > 2.0 * SPIKE_STEPS * step).any(0))
    around = np.stack([values[:, y + down, x + across] for down in range(3) for across in range(3)])
    pixel, beside = around[4], np.delete(around, 4, axis=0)
    highest, lowest = beside.max(0), beside.min(0)
    beyond = np.maximum(pixel - highest, lowest - pixel)
    mask[y + 1, x + 1] = (beyond > np.maximum(SPIKE * (highest - lowest), SPIKE_STEPS * step)).any(0)
    return mask


def _levels(edges: list[tuple[Pixels, Pixels, Pixels]]) -> Pixels:
    """Levels whose edges are complete, of edges as `_edges` gives them."""
    at, near, far = (np.concatenate(part) for part in zip(*edges, strict=True))
    levels, belongs, count = np.unique(at, axis=0, return_inverse=True, return_counts=True)
    found = np.zeros(len(levels), bool)
    for number in np.argsort(-count, kind="stable")[:_MOST_LEVELS]:
        mine = belongs.ravel() == number
        found[number] = count[number] >= _LEAST_EDGES and np.median(near[mine]) >= _COMPLETE * np.median(far[mine])
    return levels[found]


def _bands(plane: Rows, reach_px: int) -> Iterator[tuple[slice, Pixels, slice]]:
    """Rows of [C, Y, X], some at a time: which they are, they with those around them, and where they are in that."""
    channels, height, width = plane.shape
    step = max(64, _PIXELS // (channels * width))
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        first, last = max(top - reach_px, 0), min(rows.stop + reach_px, height)
        yield rows, plane[:, first:last], slice(top - first, rows.stop - first)


def _telling_step(plane: Rows) -> float:
    """By how much levels must differ to tell, from some rows of the plane where it is not flat."""
    rows = plane[:, :: max(1, plane.shape[1] * plane.shape[2] // _SAMPLES)]
    uneven = ~_alike(rows[:, :, 1:], rows[:, :, :-1])
    if not uneven.any():
        return math.inf
    values, beside = (
        np.stack([channel[uneven] for channel in side]).mean(0, dtype=np.float64)
        for side in (rows[:, :, 1:], rows[:, :, :-1])
    )
    spread = float(np.ptp(np.percentile(values, [1.0, 99.0])))
    return max(_LEAST_SHARE * spread, _LEAST_DIFFERENCES * float(np.median(np.abs(beside - values))))


def _edges(block: Pixels, own: slice, least: float) -> Iterator[tuple[Pixels, Pixels, Pixels]]:
    """Where flat places end, in each of four directions: their levels [k, C], and the step near and far beyond [k]."""
    is_flat = flat(block)
    if not is_flat.any():
        return
    mine = np.zeros_like(is_flat)
    mine[own] = True
    for turned in range(4):
        pixels, held, owned = (np.rot90(a, turned, axes=(-2, -1)) for a in (block, is_flat, mine))
        ends = held[:, :-_FAR_PX] & ~held[:, 1 : 1 - _FAR_PX] & owned[:, :-_FAR_PX]
        y, x = np.divmod(np.flatnonzero(ends), ends.shape[1])
        level, near, far = (pixels[:, y, x + away].astype(np.float64) for away in (0, _NEAR_PX, _FAR_PX))
        step = np.abs(far - level).max(0)
        telling = np.flatnonzero(step >= least)
        telling = telling[:: max(1, len(telling) // _REMEMBERED)]
        yield pixels[:, y[telling], x[telling]].T, np.abs(near - level).max(0)[telling], step[telling]


def _alike(pixels: Pixels, others: Pixels) -> Mask:
    """Where all channels agree."""
    mask: Mask = pixels[0] == others[0]
    for channel, other in zip(pixels[1:], others[1:], strict=True):
        mask &= channel == other
    return mask


def _runs(alike: Mask, axis: int) -> Mask:
    """Pixels [Y, X] of runs along an axis, by which of them are like the next one there."""
    run, length = alike, 1
    while length < RUN_PX - 1 and run.any():
        more = min(length, RUN_PX - 1 - length)
        run, length = _part(run, axis, more, None) & _part(run, axis, 0, -more), length + more
    shape = list(alike.shape)
    shape[axis] += 1
    mask = np.zeros(shape, bool)
    if length == RUN_PX - 1 and run.any():
        for pixel in range(RUN_PX):
            _part(mask, axis, pixel, pixel + run.shape[axis])[...] |= run
    return mask


def _part(mask: Mask, axis: int, start: int, stop: int | None) -> Mask:
    return mask[start:stop] if axis == 0 else mask[:, start:stop]


def _grown(mask: Mask, by_px: int) -> Mask:
    for axis in (0, 1):
        narrow, mask = mask, mask.copy()
        for away in range(1, by_px + 1):
            _part(mask, axis, away, None)[...] |= _part(narrow, axis, 0, -away)
            _part(mask, axis, 0, -away)[...] |= _part(narrow, axis, away, None)
    return mask
