"""The row that travels: one tile with its target, its defocus and where it came from."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from refocus.zstack import Modality

Kind = Literal["sharp", "pair"]
T = TypeVar("T")

#: The nearest of planes that lie one apart is no further away.
NEAREST_PLANES = 0.5

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
        """See the function of that name."""
        return is_its_own_target(self.planes_from_focus)

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


def is_its_own_target(planes_from_focus: float | None) -> bool:
    """Return whether this is the in-focus plane, paired with itself: that teaches to leave alone, and measures nothing.

    Its noise is the target's own, so the plane as it came agrees with the target perfectly, and whatever is taken out
    of it counts as an error. The plane nearest to where its place is in focus is the one that is taken for sharp there.
    """
    return planes_from_focus is not None and abs(planes_from_focus) <= NEAREST_PLANES


def drawn(items: Iterable[T], most: int, *, index: Callable[[T], int]) -> list[T]:
    """Return at most this many items as if drawn at random, and always the same ones: those of the smallest index.

    Tiles lie in a microscope's order, place by place and plane by plane; every so-manieth of them may be of one plane.
    `Tile.index` is a hash and knows no order, so specimens, places and planes mix. No more items than that are held.
    """
    return heapq.nsmallest(most, items, key=index)
