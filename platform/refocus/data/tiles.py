"""The row that travels: one tile with its target, its defocus and where it came from."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from refocus.zstack import Modality

Kind = Literal["sharp", "pair"]
T = TypeVar("T")

#: Parquet schema of a shard. `pixels` and `target` are C-order [channels, height, width] in `dtype`.
TILE_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("specimen", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("channels", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("pixels", pa.binary(), nullable=False),
        pa.field("target", pa.binary()),
        pa.field("offset", pa.float32(), nullable=False),
        pa.field("scale", pa.float32(), nullable=False),
        pa.field("y_px", pa.int32(), nullable=False),
        pa.field("x_px", pa.int32(), nullable=False),
        pa.field("plane", pa.int32()),
        pa.field("planes_from_focus", pa.float32()),
        pa.field("defocus_um", pa.float32()),
        pa.field("pixel_size_um", pa.float32()),
        pa.field("numerical_aperture", pa.float32()),
        pa.field("wavelength_um", pa.float32()),
        pa.field("refractive_index", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile ready to be written, or as it was read.

    Parameters
    ----------
    pixels : ndarray, shape (channels, height, width)
        A plane of a z-stack as the camera gave it (kind ``pair``), or a sharp image (kind ``sharp``),
        in the units and dtype of the file.
    target : ndarray of the same shape and dtype, or None
        The in-focus plane at the same place; None for sharp tiles, which are their own target.
    offset, scale : float
        Normalisation of the whole image: ``(pixels - offset) / scale``.
    planes_from_focus, defocus_um : float or None
        Signed distance of the plane from the in-focus plane, in planes and in micrometres.
    """

    source: str
    specimen: str
    modality: Modality
    kind: Kind
    pixels: npt.NDArray[Any]
    target: npt.NDArray[Any] | None
    offset: float
    scale: float
    y_px: int
    x_px: int
    plane: int | None = None
    planes_from_focus: float | None = None
    defocus_um: float | None = None
    pixel_size_um: float | None = None
    numerical_aperture: float | None = None
    wavelength_um: float | None = None
    refractive_index: float | None = None

    @property
    def index(self) -> int:
        """A 63-bit name of this tile that no other tile has, the same in every dataset version."""
        name = f"{self.source}|{self.plane}|{self.y_px}|{self.x_px}|{self.pixels.shape}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1

    @property
    def is_its_own_target(self) -> bool:
        """Whether this is the in-focus plane, paired with itself: that teaches to leave alone, and measures nothing.

        Its noise is the target's own, so the plane as it came agrees with the target perfectly, and whatever is taken
        out of it counts as an error.
        """
        return self.target is not None and np.array_equal(self.pixels, self.target)

    def row(self, *, target: bytes | None = None) -> dict[str, Any]:
        """Return the tile as a row of `TILE_SCHEMA`; `target` saves a copy where its bytes are there already."""
        channels, height, width = self.pixels.shape
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("pixels", "target")}
        return plain | {
            "index": self.index,
            "channels": channels,
            "height": height,
            "width": width,
            "dtype": self.pixels.dtype.name,
            "pixels": self.pixels.tobytes(),
            "target": self.target.tobytes() if target is None and self.target is not None else target,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Tile:
        """Rebuild a tile from a row of `TILE_SCHEMA`; the arrays are views of the row's bytes."""
        shape = (row["channels"], row["height"], row["width"])
        arrays = {
            name: None if row[name] is None else np.frombuffer(row[name], np.dtype(row["dtype"])).reshape(shape)
            for name in ("pixels", "target")
        }
        plain = {f.name: row[f.name] for f in fields(cls) if f.name not in arrays}
        return cls(**plain, **arrays)  # type: ignore[arg-type]


def drawn(items: Iterable[T], most: int, *, index: Callable[[T], int]) -> list[T]:
    """Return at most this many items as if drawn at random, and always the same ones: those of the smallest index.

    Tiles lie in a microscope's order, place by place and plane by plane; every so-manieth of them may be of one plane.
    `Tile.index` is a hash and knows no order, so specimens, places and planes mix. No more items than that are held.
    """
    return heapq.nsmallest(most, items, key=index)


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of an image, in pixels."""

    y_px: int
    x_px: int
    height_px: int
    width_px: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an array with."""
        return slice(self.y_px, self.y_px + self.height_px), slice(self.x_px, self.x_px + self.width_px)

    def within(self, other: Window) -> Window:
        """Return the same rectangle, counted from the corner of `other`."""
        return Window(self.y_px - other.y_px, self.x_px - other.x_px, self.height_px, self.width_px)

    @property
    def size_px(self) -> int:
        """How many pixels it holds."""
        return self.height_px * self.width_px


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles that cover an image without leaving a rim, in rows and columns.

    The last row and column are moved inwards, so they overlap their neighbours instead of being smaller; an image
    smaller than a tile is one tile.

    Parameters
    ----------
    tops_px, lefts_px : tuple of int
        Where the rows and columns of tiles begin.
    height_px, width_px : int
        Of every tile.
    """

    tops_px: tuple[int, ...]
    lefts_px: tuple[int, ...]
    height_px: int
    width_px: int

    @classmethod
    def over(cls, height_px: int, width_px: int, tile_px: int) -> TileGrid:
        """Cover an image with tiles of `tile_px`."""
        height, width = min(tile_px, height_px), min(tile_px, width_px)
        return cls(tuple(_starts(height_px, height)), tuple(_starts(width_px, width)), height, width)

    def window(self, row: int, column: int) -> Window:
        """Return one tile's place."""
        return Window(self.tops_px[row], self.lefts_px[column], self.height_px, self.width_px)

    def around(self, rows: range, columns: range) -> Window:
        """Return the rectangle that neighbouring tiles fill together."""
        top, left = self.tops_px[rows[0]], self.lefts_px[columns[0]]
        bottom, right = self.tops_px[rows[-1]] + self.height_px, self.lefts_px[columns[-1]] + self.width_px
        return Window(top, left, bottom - top, right - left)

    def blocks(self, most_px: int) -> Iterator[tuple[range, range]]:
        """Divide the grid into blocks of rows and columns that hold at most `most_px` pixels, or a single tile.

        Whole rows stay together as long as one of them fits: files hold their pixels row by row.
        """
        rows, columns = range(len(self.tops_px)), range(len(self.lefts_px))
        row_fits = self.around(rows[:1], columns).size_px <= most_px
        for some_rows in _runs(rows, lambda part: row_fits and self.around(part, columns).size_px <= most_px):
            for some_columns in _runs(columns, partial(self._fits, some_rows, most_px)):
                yield some_rows, some_columns

    def _fits(self, rows: range, most_px: int, columns: range) -> bool:
        return self.around(rows, columns).size_px <= most_px


def _runs(numbers: range, fits: Callable[[range], bool]) -> Iterator[range]:
    first = 0
    for stop in range(1, len(numbers) + 1):
        if stop == len(numbers) or not fits(numbers[first : stop + 1]):
            yield numbers[first:stop]
            first = stop


def _starts(length: int, window: int) -> Iterator[int]:
    yield from range(0, length - window, window)
    yield length - window
