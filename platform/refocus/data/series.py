"""One channel at one time of an opened image: rectangles of its planes, checked, and kept where all of them fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.errors import UnsupportedImage
from refocus.io.grid import Window
from refocus.io.microscopy import ImageSource, check_finite
from refocus.model.normalisation import MOST_SAMPLES
from refocus.zstack import Modality

Image = npt.NDArray[Any]

#: A series up to this size is fetched and decoded once and kept; of a larger one, as much is held at once.
HELD_BYTES = 256 * 2**20
#: Planes larger than that are read in parts.
_READ_BYTES = 64 * 2**20
_STORED_DTYPES = {"u1": "uint8", "u2": "uint16", "f4": "float32", "b1": "uint8"}


class Series:
    """The planes of one channel at one time.

    Parameters
    ----------
    image : ImageSource
    name : str
        For messages.
    t, c : int

    Attributes
    ----------
    planes, height_px, width_px : int
    plane_bytes : int
        Of one plane in the dtype that tiles are stored in.
    acquisition : Acquisition
    modality : {'fluorescence', 'brightfield', 'phase_contrast'}
    modality_assumed : bool
        Whether neither the file nor an answer says it.
    """

    def __init__(self, image: ImageSource, name: str, *, t: int = 0, c: int = 0) -> None:
        self.name = name
        self.planes, self.height_px, self.width_px = (image.size(axis) for axis in "ZYX")
        samples = image.size("S")
        if "S" in image.axes and samples != 3:
            raise UnsupportedImage(f"{name} has {samples} colour samples; expected 3 (RGB).")
        self.dtype = np.dtype(_STORED_DTYPES.get(image.dtype.str[1:], "float32"))
        self.pixel_bytes = samples * self.dtype.itemsize
        self.plane_bytes = self.height_px * self.width_px * self.pixel_bytes
        self._image, self._t, self._c = image, t, c
        said = self.acquisition = image.acquisition_of(c)
        self.modality: Modality = said.modality or ("brightfield" if "S" in image.axes else "fluorescence")
        self.modality_assumed = said.modality is None
        self._kept: dict[int, Image] | None = {} if self.planes * self.plane_bytes <= HELD_BYTES else None

    @property
    def window_px(self) -> int:
        """How many pixels of one plane are best read at a time."""
        return _READ_BYTES // self.pixel_bytes

    @property
    def column_px(self) -> int:
        """How many pixels of every plane may be held at once."""
        most = HELD_BYTES // (self.planes * self.pixel_bytes)
        return self.height_px * self.width_px if self._kept is not None else most

    def read(self, z: int, window: Window) -> Image:
        """Return a part of plane `z`, shape (rows, columns) or (rows, columns, 3), finite, as tiles store it.

        Raises
        ------
        UnreadableImage
            If its bytes are broken, or it holds NaN or infinity.
        """
        if self._kept is not None and z in self._kept:
            return self._kept[z][window.slices]
        rows, columns = window.slices
        if window.size_px == self.height_px * self.width_px:
            pixels = self._image.plane(z=z, c=self._c, t=self._t)
        else:
            pixels = self._image.window(rows, columns, z=z, c=self._c, t=self._t)
        check_finite(pixels, f"{self.name} plane {z}")
        stored = pixels.astype(self.dtype, copy=False)
        if self._kept is not None and window.size_px == self.height_px * self.width_px:
            self._kept[z] = stored
        return stored

    def read_ahead(self, wanted: Iterable[tuple[int, Window]]) -> Iterator[Image]:
        """Read one after the other, each while the one before is being used."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="refocus-read") as reader:
            coming = None
            for z, window in wanted:
                following = reader.submit(self.read, z, window)
                if coming is not None:
                    yield coming.result()
                coming = following
            if coming is not None:
                yield coming.result()

    def thinned(self, z: int) -> Image:
        """Return every n-th row and column of a plane, at most `MOST_SAMPLES` pixels or one of its rows."""
        step = int(np.ceil(np.sqrt(self.height_px * self.width_px / MOST_SAMPLES)))
        high = max(1, self.window_px // (self.width_px * step)) * step
        parts = []
        for top in range(0, self.height_px, high):
            window = Window(top, 0, min(high, self.height_px - top), self.width_px)
            parts.append(self.read(z, window)[::step, ::step])
        return np.concatenate(parts)
