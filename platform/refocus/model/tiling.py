"""Large images in pieces: overlapping tiles, seamless joins, memory that does not grow with the image.

Tiles start at multiples of the network's stride and carry a rim (halo) that is thrown away, so what is kept was
computed from the same surroundings as in the whole image. Neighbours are blended over a few pixels all the same:
what little a halo misses becomes a slope, not an edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refocus.errors import ConfigurationError
from refocus.model.networks import Prediction

Float32 = npt.NDArray[np.float32]
Window = tuple[slice, slice]

#: Smallest halo that kept seams of trained networks below a grey level; see docs/networks.md.
SMALLEST_HALO_PX = 64


@dataclass(frozen=True, slots=True)
class HaloGrid:
    """How an image is cut.

    Parameters
    ----------
    height_px, width_px : int
        Of the image.
    stride_px : int
        Of the network; everything below is rounded up to multiples of it.
    tile_px : int
        Side of what a tile contributes. An image that is not larger is one tile.
    halo_px : int
        Context beyond the outermost pixel that counts.
    blend_px : int
        Half of the width over which neighbours are mixed.

    Raises
    ------
    ConfigurationError
        If sizes are not positive.
    """

    height_px: int
    width_px: int
    stride_px: int = 16
    tile_px: int = 1024
    halo_px: int = 128
    blend_px: int = 32

    def __post_init__(self) -> None:
        if min(self.height_px, self.width_px, self.stride_px, self.tile_px) < 1 or min(self.halo_px, self.blend_px) < 0:
            raise ConfigurationError(f"{self} has sizes that are not positive.")
        for name in ("tile_px", "halo_px", "blend_px"):
            rounded = math.ceil(getattr(self, name) / self.stride_px) * self.stride_px
            object.__setattr__(self, name, rounded)
        if self.tile_px < 2 * self.blend_px:
            raise ConfigurationError(
                f"tile_px is {self.tile_px}, less than twice blend_px {self.blend_px}; tiles would be all blend."
            )

    @property
    def rows(self) -> int:
        """Tiles above one another."""
        return _pieces(self.height_px, self.tile_px)

    @property
    def columns(self) -> int:
        """Tiles beside one another."""
        return _pieces(self.width_px, self.tile_px)

    def __len__(self) -> int:
        return self.rows * self.columns

    def row(self, index: int) -> list[Tile]:
        """Tiles of one row, left to right."""
        down = self._span(index, self.rows, self.height_px)
        return [Tile(down, self._span(c, self.columns, self.width_px)) for c in range(self.columns)]

    def _span(self, index: int, count: int, size: int) -> Span:
        start, stop = index * self.tile_px, size if index == count - 1 else (index + 1) * self.tile_px
        first, last = index == 0, index == count - 1
        keep_from = start if first else start - self.blend_px
        keep_to = stop if last else stop + self.blend_px
        read_from = max(keep_from - self.halo_px, 0)
        read_to = min(keep_to + self.halo_px, size)
        return Span(read_from, read_to, keep_from, keep_to, 0 if first else self.blend_px, 0 if last else self.blend_px)


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis: what is read, what is kept, and over how much it fades in and out (half widths)."""

    read_from: int
    read_to: int
    keep_from: int
    keep_to: int
    fade_in_px: int
    fade_out_px: int

    def weights(self) -> Float32:
        """Weights of the kept pixels; those of neighbours add to 1 everywhere."""
        weights = np.ones(self.keep_to - self.keep_from, np.float32)
        for width, edge in ((self.fade_in_px, 1), (self.fade_out_px, -1)):
            if width:
                ramp = (np.arange(2 * width, dtype=np.float32) + 0.5) / (2 * width)
                weights[::edge][: 2 * width] = ramp
        return weights


@dataclass(frozen=True, slots=True)
class Tile:
    """Where one tile lies."""

    down: Span
    across: Span

    @property
    def read(self) -> Window:
        """What the network sees, in the image."""
        return slice(self.down.read_from, self.down.read_to), slice(self.across.read_from, self.across.read_to)

    @property
    def inner(self) -> Window:
        """What is kept of the network's answer, in the answer."""
        d, a = self.down, self.across
        return (
            slice(d.keep_from - d.read_from, d.keep_to - d.read_from),
            slice(a.keep_from - a.read_from, a.keep_to - a.read_from),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that the network sees."""
        d, a = self.down, self.across
        return d.read_to - d.read_from, a.read_to - a.read_from


@dataclass(frozen=True, slots=True)
class Band:
    """Finished rows of the result.

    Parameters
    ----------
    rows : slice
        Which.
    image : Tensor, float32, shape [C, rows, X]
        On the device of the predictions.
    scale : Tensor of the same shape, or None
        Laplace scale of the error.
    """

    rows: slice
    image: Tensor
    scale: Tensor | None


def run_tiled(
    read: Callable[[Window], Tensor],
    predict: Callable[[Tensor], Prediction],
    grid: HaloGrid,
    *,
    channels: int,
    with_scale: bool = False,
    pixels_per_batch: int = 2_000_000,
    blur_radius_px: Float32 | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Band]:
    """Run a network over an image tile by tile and yield the result from top to bottom.

    At any time one row of tiles and one batch are in memory, the row on the device that the predictions are on.

    Parameters
    ----------
    read : callable
        Gives what the network sees of a window of the image, [C (+ 2), h, w], on any device.
    predict : callable
        Takes a float32 batch [B, C (+ 2), h, w] and returns a `Prediction` on any device.
    grid : HaloGrid
    channels : int
    with_scale : bool
        Return the error's scale too.
    pixels_per_batch : int
        Tiles of equal shape share a batch up to this many pixels; at least one.
    blur_radius_px : ndarray, shape [ceil(Y / stride), ceil(X / stride)], optional
        Filled with the predicted radii.
    progress : callable, optional
        Called with tiles done and tiles in all.
    """
    layers = 2 if with_scale else 1
    carried: Tensor | None = None
    done = 0
    for index in range(grid.rows):
        tiles = grid.row(index)
        down = tiles[0].down
        strip: Tensor | None = None
        for group in _batches(tiles, pixels_per_batch):
            prediction = predict(_stacked([read(tile.read) for tile in group]))
            if strip is None:
                size = layers, channels, down.keep_to - down.keep_from, grid.width_px
                strip = torch.zeros(size, device=prediction.image.device)
                if carried is not None:
                    strip[:, :, : carried.shape[2]] += carried
            for position, tile in enumerate(group):
                _add(strip, prediction, position, tile, with_scale)
                if blur_radius_px is not None:
                    _place(blur_radius_px, prediction.blur_radius_px[position, 0], tile, grid.stride_px)
            done += len(group)
            if progress is not None:
                progress(done, len(grid))
        assert strip is not None
        # Rows that the next row of tiles still adds to are carried on.
        open_rows = 2 * down.fade_out_px
        closed = strip.shape[2] - open_rows
        carried = strip[:, :, closed:].clone() if open_rows else None
        rows = slice(down.keep_from, down.keep_from + closed)
        yield Band(rows, strip[0, :, :closed], strip[1, :, :closed] if with_scale else None)


def _stacked(tiles: list[Tensor]) -> Tensor:
    return tiles[0][None] if len(tiles) == 1 else torch.stack(tiles)


def _add(strip: Tensor, prediction: Prediction, position: int, tile: Tile, with_scale: bool) -> None:
    inner = (slice(None), *tile.inner)
    columns = slice(tile.across.keep_from, tile.across.keep_to)
    parts = [prediction.image[position][inner].float()]
    if with_scale:
        parts.append(prediction.log_scale[position][inner].float().exp())
    if any((tile.down.fade_in_px, tile.down.fade_out_px, tile.across.fade_in_px, tile.across.fade_out_px)):
        down, across = (torch.from_numpy(span.weights()).to(strip.device) for span in (tile.down, tile.across))
        weights = down[:, None] * across
        parts = [part * weights for part in parts]
    for layer, part in zip(strip, parts, strict=True):
        layer[:, :, columns] += part


def _place(whole: Float32, part: Tensor, tile: Tile, stride: int) -> None:
    down, across = tile.down, tile.across
    # Fades belong half to the one, half to the other neighbour.
    rows = slice((down.keep_from + down.fade_in_px) // stride, -(-(down.keep_to - down.fade_out_px) // stride))
    columns = slice(
        (across.keep_from + across.fade_in_px) // stride, -(-(across.keep_to - across.fade_out_px) // stride)
    )
    y, x = down.read_from // stride, across.read_from // stride
    whole[rows, columns] = part[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x].float().cpu()


def _batches(tiles: list[Tile], pixels: int) -> Iterator[list[Tile]]:
    group: list[Tile] = []
    for tile in tiles:
        most = max(1, pixels // (tile.shape[0] * tile.shape[1]))
        if group and (group[0].shape != tile.shape or len(group) >= most):
            yield group
            group = []
        group.append(tile)
    if group:
        yield group


def _pieces(size: int, tile: int) -> int:
    """How many tiles cover `size`; a rest of less than half a tile joins its neighbour."""
    return max(1, (size + tile // 2) // tile)
