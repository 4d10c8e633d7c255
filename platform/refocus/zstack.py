"""A z-stack as a value: pixels, what their axes mean, and how they were taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from refocus.errors import InputError

Modality = Literal["fluorescence", "brightfield", "phase_contrast"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)

#: Axis letters and their order: time, channel, z-plane, row, column, colour sample (RGB).
AXES = "TCZYXS"


@dataclass(frozen=True, slots=True)
class Acquisition:
    """How an image was taken; None where the file does not say.

    Parameters
    ----------
    modality : {'fluorescence', 'brightfield', 'phase_contrast'} or None
    pixel_size_um : float or None
        Spacing of pixel centres in the specimen, in micrometres.
    z_step_um : float or None
        Spacing of neighbouring planes in the specimen, in micrometres.
    numerical_aperture : float or None
    wavelength_um : float or None
        Vacuum wavelength of emission (fluorescence) or illumination (brightfield).
    refractive_index : float or None
        Of the immersion medium: 1.0 dry, 1.33 water, 1.515 oil.
    """

    modality: Modality | None = None
    pixel_size_um: float | None = None
    z_step_um: float | None = None
    numerical_aperture: float | None = None
    wavelength_um: float | None = None
    refractive_index: float | None = None

    def __post_init__(self) -> None:
        if self.modality is not None and self.modality not in MODALITIES:
            raise InputError(f"modality {self.modality!r} is not known; expected one of {', '.join(MODALITIES)}.")
        for name in ("pixel_size_um", "z_step_um", "numerical_aperture", "wavelength_um", "refractive_index"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value!r}; expected a positive, finite number or None for unknown.")

    def filled_from(self, other: Acquisition) -> Acquisition:
        """Return a copy whose unknown fields are taken from `other`."""
        unknown = {name: getattr(other, name) for name in self.__slots__ if getattr(self, name) is None}
        return replace(self, **unknown)


@dataclass(frozen=True, slots=True)
class ZStack:
    """Planes of one specimen at several focal positions, in memory.

    Parameters
    ----------
    pixels : ndarray
        Intensities as the camera gave them, never rescaled. Read-only after construction.
    axes : str
        One letter an axis, a subset of ``"TCZYXS"`` in that order, ``Y`` and ``X`` included.
    acquisition : Acquisition
    source : str
        Where it came from, for messages and provenance.
    specimen : str
        What the split keeps together: two stacks of one slide share it. Defaults to `source`.
    metadata : mapping
        What else the file said (OME-XML, resolution tags, channel names), handed through unread.

    Raises
    ------
    InputError
        If axes and shape disagree, or the axes are unknown or out of order.

    Examples
    --------
    >>> import numpy as np
    >>> stack = ZStack(np.zeros((5, 64, 48), np.uint16), "ZYX", Acquisition(z_step_um=0.5))
    >>> stack.planes, stack.height_px, stack.width_px
    (5, 64, 48)
    """

    pixels: npt.NDArray[Any]
    axes: str
    acquisition: Acquisition = field(default_factory=Acquisition)
    source: str = "memory"
    specimen: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        letters = set(self.axes)
        if len(letters) != len(self.axes) or not letters <= set(AXES) or not {"Y", "X"} <= letters:
            raise InputError(
                f"{self.source}: axes {self.axes!r} are not understood; expected letters of {AXES!r}, "
                "each once, with Y and X among them."
            )
        if "".join(a for a in AXES if a in letters) != self.axes:
            raise InputError(
                f"{self.source}: axes {self.axes!r} are out of order; expected the order {AXES!r} (transpose first)."
            )
        if self.pixels.ndim != len(self.axes):
            raise InputError(
                f"{self.source}: pixels have shape {self.pixels.shape}, which is {self.pixels.ndim} axes, "
                f"but {self.axes!r} names {len(self.axes)}."
            )
        pixels = self.pixels.view()
        pixels.flags.writeable = False
        object.__setattr__(self, "pixels", pixels)
        if not self.specimen:
            object.__setattr__(self, "specimen", self.source)

    def size(self, axis: str) -> int:
        """Length along `axis`, 1 where the stack has no such axis."""
        return self.pixels.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def planes(self) -> int:
        """Number of z-planes."""
        return self.size("Z")

    @property
    def height_px(self) -> int:
        """Rows."""
        return self.size("Y")

    @property
    def width_px(self) -> int:
        """Columns."""
        return self.size("X")
