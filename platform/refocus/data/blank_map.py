"""Where the planes of a series show no specimen: one map for all of them.

Overlays, fixed padding and defective pixels lie at one place in every plane; where a program has moved planes onto one
another, padding reaches farthest into the first and the last. So a few planes tell of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from refocus.errors import UnsupportedImage
from refocus.io.grid import Window
from refocus.model.blanks import Mask, Rows, find_blanks, said_of


@dataclass(frozen=True, slots=True, eq=False)
class BlankMap:
    """What shows no specimen in any of the planes that were looked at.

    Parameters
    ----------
    inside : Window
        What is left without rims that are wholly blank.
    said : str
        What was found, in words; empty where nothing was.
    """

    inside: Window
    said: str = ""
    # Eight pixels a byte, so that the map of a large plane takes little beside what is read of it.
    _bits: npt.NDArray[np.uint8] | None = None

    @classmethod
    def of(cls, planes: Sequence[Rows], name: str) -> BlankMap:
        """Look through some planes [C, Y, X] of one shape.

        Raises
        ------
        UnsupportedImage
            If nothing is left; `name` is what that is said of.
        """
        _, height, width = planes[0].shape
        found = [find_blanks(plane) for plane in planes]
        if not any(found):
            return cls(Window(0, 0, height, width))
        # One defective pixel shows in every plane.
        most = max(blanks.spikes for blanks in found)
        said = said_of([replace(found[0], spikes=most), *(replace(blanks, spikes=0) for blanks in found[1:])])
        bits = np.zeros((height, -(-width // 8)), np.uint8)
        for plane, blanks in zip(planes, found, strict=True):
            for rows, blank in blanks.bands(plane) if blanks else ():
                bits[rows] |= np.packbits(blank, axis=1)
        seen_rows = [y for y in range(height) if not np.unpackbits(bits[y], count=width).all()]
        if not seen_rows:
            raise UnsupportedImage(
                f"no place of {name} shows a specimen in all planes: padding or overlays cover them ({said})."
            )
        seen_columns = np.flatnonzero(~np.unpackbits(np.bitwise_and.reduce(bits), count=width).astype(bool))
        top, left = seen_rows[0], int(seen_columns[0])
        inside = Window(top, left, seen_rows[-1] + 1 - top, int(seen_columns[-1]) + 1 - left)
        return cls(inside, said, bits)

    def over(self, window: Window) -> Mask | None:
        """Which pixels of a part of `inside`, counted from its corner, are blank; None where all show the specimen."""
        if self._bits is None:
            return None
        top, left = window.y_px + self.inside.y_px, window.x_px + self.inside.x_px
        bits = self._bits[top : top + window.height_px, left // 8 : -(-(left + window.width_px) // 8)]
        if not bits.any():
            return None
        return np.unpackbits(bits, axis=1)[:, left % 8 : left % 8 + window.width_px].astype(bool)

    def share(self, window: Window) -> float:
        """How much of a part of `inside` is blank."""
        blank = self.over(window)
        return 0.0 if blank is None else float(blank.mean())
