"""One channel at one time of an opened image: rectangles of its planes, checked, and kept where all of them fit.

What shows no specimen (:mod:`refocus.data.blank_map`) is taken for unknown, as in restoring: no optics blurs the edges
of padding and scale bars. Rims are cut off, and the specimen is continued over the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.data.blank_map import BlankMap
from refocus.errors import UnsupportedImage
from refocus.io.grid import Window
from refocus.io.microscopy import ImageSource, check_finite
from refocus.model.colors import modality_seen, only_channel
from refocus.model.normalisation import MOST_SAMPLES
from refocus.model.specimen import continued
from refocus.zstack import Modality

Image = npt.NDArray[Any]

#: A series up to this size is fetched and decoded once and kept; of a larger one, as much is held at once.
HELD_BYTES = 256 * 2**20
#: Planes larger than that are read in parts.
_READ_BYTES = 64 * 2**20
#: The specimen is continued over so many pixels at a time, from so many rows around them.
_CONTINUED_PX, _AROUND_PX = 2**21, 64
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
    blanks : BlankMap
        What is cut off and what the specimen is continued over, in every plane.
    planes, height_px, width_px : int
        Without rims that are wholly blank.
    plane_bytes : int
        Of one plane in the dtype that tiles are stored in.
    acquisition : Acquisition
    modality : {'fluorescence', 'brightfield', 'phase_contrast'}
    modality_assumed : bool
        Whether neither the file nor an answer says it, so that pixels do (:mod:`refocus.model.colors`).
    """

    def __init__(self, image: ImageSource, name: str, *, t: int = 0, c: int = 0) -> None:
        self.name = name
        self.planes = image.size("Z")
        samples = image.size("S")
        if "S" in image.axes and samples != 3:
            raise UnsupportedImage(f"{name} has {samples} colour samples; expected 3 (RGB).")
        self.dtype = np.dtype(_STORED_DTYPES.get(image.dtype.str[1:], "float32"))
        self.pixel_bytes = samples * self.dtype.itemsize
        self._image, self._t, self._c = image, t, c
        said = self.acquisition = image.acquisition_of(c)
        self.modality_assumed = said.modality is None
        whole = Window(0, 0, image.size("Y"), image.size("X"))
        fits = self.planes * whole.size_px * self.pixel_bytes <= HELD_BYTES
        look_at = sorted({0, self.planes // 2, self.planes - 1})
        looked = {z: self._stored(z, whole) for z in look_at} if fits else {}
        self.blanks = BlankMap.of(
            [channels_first(plane) for plane in looked.values()]
            or [_Rows(partial(self._stored, z), (samples, whole.height_px, whole.width_px)) for z in look_at],
            name,
        )
        inside = self.blanks.inside
        self.height_px, self.width_px = inside.height_px, inside.width_px
        self.plane_bytes = inside.size_px * self.pixel_bytes
        self._whole = Window(0, 0, self.height_px, self.width_px)
        self._kept: dict[int, Image] | None = None
        if fits:
            self._kept = {z: self._continued(plane[inside.slices], self._whole) for z, plane in looked.items()}
        self._only: int | None = None
        self.modality: Modality = said.modality or "fluorescence"
        if samples == 3:
            colors = self.thinned(self.planes // 2)
            self.modality = said.modality or modality_seen(colors[None])
            self._keep_only(only_channel(colors))

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

        Of RGB that holds a single channel of light it is that channel.

        Raises
        ------
        UnreadableImage
            If its bytes are broken, or it holds NaN or infinity.
        """
        if self._kept is not None and z in self._kept:
            return self._kept[z][window.slices]
        pixels = self._continued(self._stored(z, self.in_file(window)), window)
        pixels = pixels if self._only is None else pixels[..., self._only]
        if self._kept is not None and window == self._whole:
            self._kept[z] = pixels
        return pixels

    def in_file(self, window: Window) -> Window:
        """Return where a part lies in the planes as the file holds them, rims included."""
        inside = self.blanks.inside
        return Window(window.y_px + inside.y_px, window.x_px + inside.x_px, window.height_px, window.width_px)

    def _keep_only(self, channel: int | None) -> None:
        self._only = channel
        if channel is not None and self._kept is not None:
            self._kept = {z: plane[..., channel] for z, plane in self._kept.items()}

    def _stored(self, z: int, window: Window) -> Image:
        """A part of a plane as the file holds it, in the dtype of tiles."""
        if (window.height_px, window.width_px) == (self._image.size("Y"), self._image.size("X")):
            pixels = self._image.plane(z=z, c=self._c, t=self._t)
        else:
            pixels = self._image.window(*window.slices, z=z, c=self._c, t=self._t)
        check_finite(pixels, f"{self.name} plane {z}")
        return pixels.astype(self.dtype, copy=False)

    def _continued(self, pixels: Image, window: Window) -> Image:
        """A part with the specimen continued over what is blank."""
        blank = self.blanks.over(window)
        if blank is None:
            return pixels
        filled = pixels.copy()
        step = max(_AROUND_PX, _CONTINUED_PX // window.width_px)
        for top in range(0, window.height_px, step):
            rows = slice(top, min(top + step, window.height_px))
            if blank[rows].any():
                first = max(top - _AROUND_PX, 0)
                around = slice(first, rows.stop + _AROUND_PX)
                values = np.moveaxis(continued(channels_first(pixels[around]), blank[around]), 0, 2)
                values = values[top - first : rows.stop - first].reshape(filled[rows].shape)[blank[rows]]
                filled[rows][blank[rows]] = np.rint(values) if self.dtype.kind == "u" else values
        return filled

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


@dataclass(frozen=True, slots=True)
class _Rows:
    """A plane that is too large to be held, [C, Y, X]."""

    read: Callable[[Window], Image]
    shape: tuple[int, int, int]

    def __getitem__(self, where: tuple[slice, slice], /) -> Image:
        start, stop, step = where[1].indices(self.shape[1])
        runs = [(start, stop)] if step == 1 else [(row, row + 1) for row in range(start, stop, step)]
        parts = [self.read(Window(top, 0, end - top, self.shape[2])) for top, end in runs]
        return channels_first(np.concatenate(parts))


def channels_first(pixels: Image) -> Image:
    """Return rows and columns, or those of colours, as [C, Y, X]."""
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
