"""Pixels that show no specimen: padding of stitched, turned or aligned images, cut-outs, scale bars, dead lines.

They were never blurred, so their edges look like detail in focus and mislead all that reads a blur. They have one
grey level, lie side by side, and end within a pixel, which an image out of focus never does. By that they are told,
plane by plane, and taken for unknown: what is wholly blank at the rims is cut off, the specimen is continued over the
rest, and blank pixels and those beside them come back as they were. What that is worth is in docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from refocus.model.normalisation import thinned

Pixels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Window = tuple[slice, slice]

#: Alike over a square of this side, or a run of this length along a row or column: that is flat.
_SQUARE_PX, _RUN_PX = 3, 16
#: An edge is complete at the one distance if there is hardly more of it at the other. Interpolation takes one pixel.
_NEAR_PX, _FAR_PX, _COMPLETE = 2, 4, 0.8
#: Edges tell where what lies beyond differs by this share of the image's range, and so many times what neighbours do.
_LEAST_SHARE, _LEAST_DIFFERENCES = 0.02, 4.0
#: So many of a level's edges must tell; levels with the most are judged.
_LEAST_EDGES, _MOST_LEVELS = 16, 8
#: So near to blank pixels others may be mixed with them.
_MIXED_PX = 2
#: Parts are read from multiples of this on, so that windows average the same squares where a specimen is continued.
_ALIGNED_PX = 64
#: Pixels, and rows, looked at at a time; edges of each that are remembered, and pixels that what tells is judged by.
_PIXELS, _ROWS, _REMEMBERED, _SAMPLES = 2_000_000, 256, 20_000, 200_000


@dataclass(frozen=True, eq=False)
class Specimen:
    """One plane without what shows no specimen. Reads window by window like an array, [C, Y, X].

    Parameters
    ----------
    plane : ndarray, shape [C, Y, X]
        Any numeric type; may be a memory map.
    levels : ndarray, shape [n, C]
        Grey levels, or colours, that stand for no specimen. Where there are none it reads as the plane itself.
    stride_px : int
        What is left after rims are cut off starts at multiples of it.
    """

    plane: Pixels
    levels: Pixels
    stride_px: int = 1

    @classmethod
    def of(cls, plane: Pixels, *, stride_px: int = 1) -> Specimen:
        """Of a plane [C, Y, X] whose blank levels are looked for."""
        return cls(plane, blank_levels(plane), stride_px)

    @property
    def has_blanks(self) -> bool:
        """Whether there is anything to leave out."""
        return len(self.levels) > 0

    @cached_property
    def window(self) -> Window:
        """What is left of the plane without rims that are wholly blank."""
        height, width = self.plane.shape[1:]
        if not self.has_blanks:
            return slice(0, height), slice(0, width)
        rows = self._left_of(height, lambda y: self.plane[:, y])
        return rows, self._left_of(width, lambda x: self.plane[:, rows, x])

    @property
    def given(self) -> Pixels:
        """The window as it came, blanks included."""
        return self.plane[(slice(None), *self.window)]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the window."""
        rows, columns = self.window
        return self.plane.shape[0], rows.stop - rows.start, columns.stop - columns.start

    def __getitem__(self, where: tuple[slice, slice, slice]) -> Pixels:
        """Pixels of a part of the window; floats where the specimen is continued over blanks."""
        channels, *place = where
        rows, columns = (_within(part, whole) for part, whole in zip(place, self.window, strict=True))
        if not self.has_blanks:
            return self.plane[channels, rows, columns]
        around, inner = self._around(rows, columns)
        unknown = self._unknown(around)
        seen = continued(around, unknown) if unknown.any() else around
        return seen[(channels, *inner)]

    def put_back(self, restored: Pixels, rows: slice, *, level: float | None = None) -> None:
        """In some rows of a restored window [C, Y, X], make blank and mixed pixels what they were, or a level."""
        if not self.has_blanks:
            return
        for top in range(rows.start, rows.stop, _ROWS):
            part = slice(top, min(top + _ROWS, rows.stop))
            around, inner = self._around(
                *(_within(p, w) for p, w in zip((part, slice(None)), self.window, strict=True))
            )
            unknown = self._unknown(around)[inner]
            np.copyto(restored[:, part], self.given[:, part] if level is None else level, where=unknown)

    def placed(self, entries: Pixels) -> Pixels:
        """A map of the window, one entry for each `stride_px` pixels a side, as one of the plane: its rim beyond it."""
        beyond = [
            (part.start // self.stride_px, -(-length // self.stride_px) - -(-part.stop // self.stride_px))
            for part, length in zip(self.window, self.plane.shape[1:], strict=True)
        ]
        return np.pad(entries, beyond, mode="edge")

    def everywhere(self) -> tuple[Pixels, Mask]:
        """The whole plane, rims included, with the specimen continued over all that is blank, and where that is."""
        if not self.has_blanks:
            return self.plane, np.zeros(self.plane.shape[1:], bool)
        unknown = self._unknown(self.plane)
        return continued(self.plane, unknown), unknown

    def visible(self) -> Pixels:
        """Pixels [C, n] that are of no blank level, of a large plane some: what its grey levels are judged by."""
        if not self.has_blanks:
            return self.plane
        some = thinned(self.plane)
        seen = some[:, ~_is_any(some, self.levels)]
        return seen if seen.size else self.given

    def _unknown(self, block: Pixels) -> Mask:
        return _grown(flat(block) & _is_any(block, self.levels), _MIXED_PX)

    def _around(self, rows: slice, columns: slice) -> tuple[Pixels, Window]:
        """A part of the plane with all that tells which of it is blank, and where the part lies in that."""
        reach = _RUN_PX + _MIXED_PX
        outer = [
            slice(
                max(part.start - reach, 0) // _ALIGNED_PX * _ALIGNED_PX,
                min(-(-(part.stop + reach) // _ALIGNED_PX) * _ALIGNED_PX, length),
            )
            for part, length in zip((rows, columns), self.plane.shape[1:], strict=True)
        ]
        inner = tuple(
            slice(part.start - around.start, part.stop - around.start, part.step)
            for part, around in zip((rows, columns), outer, strict=True)
        )
        return self.plane[(slice(None), *outer)], (inner[0], inner[1])

    def _left_of(self, length: int, line: Callable[[int], Pixels]) -> slice:
        seen = (number for number in range(length) if not _is_any(line(number), self.levels).all())
        first = next(seen, 0)
        last = next((n for n in range(length - 1, first, -1) if not _is_any(line(n), self.levels).all()), first)
        return slice(first // self.stride_px * self.stride_px, last + 1)


def blank_levels(plane: Pixels) -> Pixels:
    """Grey levels, or colours, of a plane [C, Y, X] that stand for no specimen, shape [n, C]; mostly none.

    Where flat places of such a level end at something that is not as dark, or bright, it is all there within two
    pixels. Flat ground and saturated places end slowly, as far as the image is out of focus.
    """
    least = _telling_step(plane)
    edges = [edge for block, own in _bands(plane) for edge in _edges(block, own, least)]
    if not edges:
        return plane[:, :0, 0].T
    at, near, far = (np.concatenate(part) for part in zip(*edges, strict=True))
    levels, belongs, count = np.unique(at, axis=0, return_inverse=True, return_counts=True)
    found = np.zeros(len(levels), bool)
    for number in np.argsort(-count, kind="stable")[:_MOST_LEVELS]:
        mine = belongs.ravel() == number
        found[number] = count[number] >= _LEAST_EDGES and np.median(near[mine]) >= _COMPLETE * np.median(far[mine])
    return levels[found]


def said_of_levels(levels: Iterable[Sequence[float]]) -> str:
    """Grey levels, or colours, in words.

    Examples
    --------
    >>> said_of_levels([(0.0,), (65535.0,)]), said_of_levels([(255.0, 255.0, 255.0)])
    ('0, 65535', '255/255/255')
    """
    return ", ".join("/".join(f"{value:.12g}" for value in level) for level in levels)


def flat(block: Pixels) -> Mask:
    """Pixels of [C, Y, X] amid others of the same level: in a square of 3 px or in a run of 16, shape [Y, X]."""
    mask = np.zeros(block.shape[1:], bool)
    across, down = _alike(block[:, :, 1:], block[:, :, :-1]), _alike(block[:, 1:], block[:, :-1])
    if across.any() and down.any():
        three = across[:, 1:] & across[:, :-1]
        square = three[2:] & three[1:-1] & three[:-2] & down[1:, 1:-1] & down[:-1, 1:-1]
        if square.any():
            mask[1:-1, 1:-1] = square
            mask = _grown(mask, _SQUARE_PX // 2)
    for alike, lines in ((across, mask), (down.T, mask.T)):
        lines |= _runs(alike)
    return mask


def continued(block: Pixels, unknown: Mask) -> npt.NDArray[np.float64]:
    """Pixels [C, Y, X] with unknown ones replaced by means of ever wider surroundings, the nearest that are known."""
    known = torch.from_numpy(~unknown)[None].double()
    values = torch.from_numpy(block.astype(np.float64)) * known
    return _filled(values, known).numpy()


def _filled(values: Tensor, known: Tensor) -> Tensor:
    """Values times how well they are known, [C, h, w] and [1, h, w], without gaps."""
    height, width = values.shape[-2:]
    if max(height, width) == 1 or bool((known > 0).all()):
        return values / known.clamp(min=torch.finfo(known.dtype).tiny)
    even = (0, width % 2, 0, height % 2)
    coarser, share = (4.0 * F.avg_pool2d(F.pad(t, even)[None], 2)[0] for t in (values, known))
    whole = share.clamp(min=1.0)
    wide = _filled(coarser / whole, share / whole)
    size = height + height % 2, width + width % 2
    wide = F.interpolate(wide[None], size, mode="bilinear", align_corners=False)[0, :, :height, :width]
    return values + (1.0 - known) * wide


def _bands(plane: Pixels) -> Iterator[tuple[Pixels, slice]]:
    """Rows of [C, Y, X], some at a time with those around them, and which of these are their own."""
    height = plane.shape[1]
    reach = _RUN_PX + _FAR_PX
    step = max(64, _PIXELS // (plane.shape[0] * plane.shape[2]))
    for top in range(0, height, step):
        first, last = max(top - reach, 0), min(top + step + reach, height)
        yield plane[:, first:last], slice(top - first, min(top + step, height) - first)


def _telling_step(plane: Pixels) -> float:
    """By how much levels must differ to tell, from some rows of the plane where it is not flat."""
    rows = plane[:, :: max(1, plane[0].size // _SAMPLES)]
    uneven = ~_alike(rows[:, :, 1:], rows[:, :, :-1])
    if not uneven.any():
        return math.inf
    values, beside = (side[:, uneven].mean(0, dtype=np.float64) for side in (rows[:, :, 1:], rows[:, :, :-1]))
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
        y, x = np.nonzero(held[:, :-_FAR_PX] & ~held[:, 1 : 1 - _FAR_PX] & owned[:, :-_FAR_PX])
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


def _runs(alike: Mask) -> Mask:
    """Pixels [Y, X] of runs along X, by which pixels are like the next one, [Y, X - 1]."""
    mask = np.zeros((alike.shape[0], alike.shape[1] + 1), bool)
    run, length = alike, 1
    while length < _RUN_PX - 1 and run.shape[1] and run.any():
        more = min(length, _RUN_PX - 1 - length)
        run, length = run[:, more:] & run[:, :-more], length + more
    if length == _RUN_PX - 1 and run.any():
        for pixel in range(_RUN_PX):
            mask[:, pixel : pixel + run.shape[1]] |= run
    return mask


def _grown(mask: Mask, by_px: int) -> Mask:
    grown: Mask = ndimage.maximum_filter(mask, size=2 * by_px + 1, mode="constant", cval=False)
    return grown


def _is_any(pixels: Pixels, levels: Pixels) -> Mask:
    """Which pixels [C, ...] have one of the levels [n, C]."""
    mask = np.zeros(pixels.shape[1:], bool)
    for level in levels:
        mask |= (pixels == level.reshape(-1, *(1,) * (pixels.ndim - 1))).all(0)
    return mask


def _within(part: slice, whole: slice) -> slice:
    """A part of a part, as a slice of all."""
    start, stop, step = part.indices(whole.stop - whole.start)
    return slice(whole.start + start, whole.start + stop, step)
