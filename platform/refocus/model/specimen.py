"""An image's plane as the specimen it shows, whatever pads it or is painted over it.

What :mod:`refocus.model.blanks` finds is taken for unknown: rims that are wholly blank are cut off, the specimen is
continued over the rest, and blank pixels and those beside them come back as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from refocus.model.blanks import REACH_PX, Blanks, Mask, Pixels, find_blanks
from refocus.model.blanks_screen import screened
from refocus.model.normalisation import thinned

Window = tuple[slice, slice]

#: Parts are read from multiples of this on, so that windows average the same squares where a specimen is continued.
_ALIGNED_PX = 64
#: Rows put back at a time.
_ROWS = 256


@dataclass(frozen=True, eq=False)
class Specimen:
    """One plane without what shows no specimen. Reads window by window like an array, [C, Y, X].

    Parameters
    ----------
    plane : ndarray, shape [C, Y, X]
        Any numeric type; may be a memory map.
    blanks : Blanks
        Where there are none it reads as the plane itself.
    stride_px : int
        What is left after rims are cut off starts at multiples of it.
    """

    plane: Pixels
    blanks: Blanks
    stride_px: int = 1

    @classmethod
    def of(cls, plane: Pixels, *, stride_px: int = 1, held: Tensor | None = None) -> Specimen:
        """Of a plane [C, Y, X] whose blanks are looked for: there, where a device holds its values already (`held`)."""
        return cls(plane, find_blanks(plane, None if held is None else partial(screened, held)), stride_px)

    @cached_property
    def window(self) -> Window:
        """What is left of the plane without rims that are wholly blank."""
        height, width = self.plane.shape[1:]
        if not self.blanks:
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
        if not self.blanks:
            return self.plane[channels, rows, columns]
        around, inner = self._around(rows, columns)
        unknown = self.blanks.over(around)
        seen = continued(around, unknown) if unknown.any() else around
        return seen[(channels, *inner)]

    def put_back(self, restored: Pixels, rows: slice, *, level: float | None = None) -> None:
        """In some rows of a restored window [C, Y, X], make blank and mixed pixels what they were, or a level."""
        if not self.blanks:
            return
        for top in range(rows.start, rows.stop, _ROWS):
            part = slice(top, min(top + _ROWS, rows.stop))
            around, inner = self._around(
                *(_within(p, w) for p, w in zip((part, slice(None)), self.window, strict=True))
            )
            unknown = self.blanks.over(around)[inner]
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
        if not self.blanks:
            return self.plane, np.zeros(self.plane.shape[1:], bool)
        unknown = self.blanks.over(self.plane)
        return continued(self.plane, unknown), unknown

    def visible(self) -> Pixels:
        """Pixels [C, n] that are not blank, of a large plane some: what its grey levels are judged by."""
        if not self.blanks:
            return self.plane
        some = thinned(self.plane)
        seen = some[:, ~self.blanks.among(some)]
        return seen if seen.size else self.given

    def _around(self, rows: slice, columns: slice) -> tuple[Pixels, Window]:
        """A part of the plane with all that tells which of it is blank, and where the part lies in that."""
        outer = [
            slice(
                max(part.start - REACH_PX, 0) // _ALIGNED_PX * _ALIGNED_PX,
                min(-(-(part.stop + REACH_PX) // _ALIGNED_PX) * _ALIGNED_PX, length),
            )
            for part, length in zip((rows, columns), self.plane.shape[1:], strict=True)
        ]
        inner = tuple(
            slice(part.start - around.start, part.stop - around.start, part.step)
            for part, around in zip((rows, columns), outer, strict=True)
        )
        return self.plane[(slice(None), *outer)], (inner[0], inner[1])

    def _left_of(self, length: int, line: Callable[[int], Pixels]) -> slice:
        seen = (number for number in range(length) if not self.blanks.of_level(line(number)).all())
        first = next(seen, 0)
        last = next((n for n in range(length - 1, first, -1) if not self.blanks.of_level(line(n)).all()), first)
        return slice(first // self.stride_px * self.stride_px, last + 1)


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


def _within(part: slice, whole: slice) -> slice:
    """A part of a part, as a slice of all."""
    start, stop, step = part.indices(whole.stop - whole.start)
    return slice(whole.start + start, whole.start + stop, step)
