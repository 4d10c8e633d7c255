"""Measured focal series as tests: each plane restored and compared with the plane that is in focus.

The in-focus plane is a measurement with noise of its own, planes are brought into register first, and drift of the
lamp stays in: nothing is fitted. Scores are therefore lower than on simulated scenes and their *change* is what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.errors import InputError
from refocus.focus.alignment import align, shifts_along
from refocus.focus.plane import find_in_focus_plane
from refocus.zstack import Modality, ZStack

Image = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class MeasuredPlane:
    """One plane of a series, or a tile of it, with the same place in focus.

    Attributes
    ----------
    image, truth : ndarray, float32, shape [C, Y, X]
    planes_from_focus : float
        Signed.
    defocus_um : float or None
        Where the z step is known.
    """

    image: Image
    truth: Image
    specimen: str
    modality: Modality
    planes_from_focus: float
    defocus_um: float | None = None

    @property
    def band(self) -> str:
        """Distance from focus in whole planes, as a label."""
        return f"{round(abs(self.planes_from_focus))} planes"


def planes_of(stack: ZStack, *, field_px: int = 512) -> Iterator[MeasuredPlane]:
    """Yield the planes of a focal series against its in-focus plane, brought into register.

    Copies of that plane are left out with it: what equals its target measures nothing.

    Parameters
    ----------
    stack : ZStack
        Axes ``ZYX``, with or without single T, C.
    field_px : int
        Of larger planes the centre is taken.

    Raises
    ------
    InputError
        If the stack has fewer than three planes or several channels, or is sharpest at its first or last plane: what
        would be measured against may be blurred itself. Likewise if its in-focus plane shows nothing.
    """
    if stack.planes < 3 or stack.size("T") * stack.size("C") * stack.size("S") != 1:
        raise InputError(
            f"{stack.source} has axes {stack.axes} of shape {stack.pixels.shape}; a series has one channel and at "
            "least three planes."
        )
    planes = stack.pixels.reshape(stack.planes, stack.height_px, stack.width_px)
    focus = find_in_focus_plane(planes)
    if focus.at_edge:
        raise InputError(
            f"{stack.source} is sharpest at plane {focus.index} of 0 to {stack.planes - 1}, at its edge: its focus may "
            "lie outside; expected planes on both sides of focus. Record further planes there, or leave the series out."
        )
    shifts = shifts_along(planes, focus.index)
    # What moved in at the rim repeats it and is no measurement.
    rim = int(np.ceil(max(max(abs(s.y_px), abs(s.x_px)) for s in shifts)))
    height, width = (min(field_px, size - 2 * rim) for size in planes.shape[1:])
    if min(height, width) < 32:
        raise InputError(f"{stack.source} drifts by {rim} px over {planes.shape[1:]}; nothing is left in common.")
    y, x = ((size - field) // 2 for size, field in zip(planes.shape[1:], (height, width), strict=True))
    window = slice(y, y + height), slice(x, x + width)
    truth = planes[focus.index][window].astype(np.float32)[None]
    if truth.min() == truth.max():
        raise InputError(
            f"{stack.source} is in focus at plane {focus.index} of 0 to {stack.planes - 1}, whose middle {height} x "
            f"{width} px are {truth.min():g} all over; expected a specimen to compare with. Was that plane lost while "
            "recording? Leave it out, or the series."
        )
    for index, (plane, shift) in enumerate(zip(planes, shifts, strict=True)):
        if index == focus.index or np.array_equal(plane, planes[focus.index]):
            continue
        step = stack.acquisition.z_step_um
        yield MeasuredPlane(
            image=np.ascontiguousarray(align(plane, shift)[window]).astype(np.float32)[None],
            truth=truth,
            specimen=stack.specimen,
            modality=stack.acquisition.modality or "fluorescence",
            planes_from_focus=float(index - focus.index),
            defocus_um=None if step is None else abs(index - focus.position) * step,
        )


def thinned(planes: Iterable[MeasuredPlane], most: int) -> list[MeasuredPlane]:
    """Keep at most this many, evenly over the series."""
    kept = list(planes)
    if len(kept) <= most:
        return kept
    return [kept[int(i)] for i in np.linspace(0, len(kept) - 1, most).round()]
