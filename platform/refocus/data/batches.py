"""Training batches: tiles from Parquet, cut to one window size, as tensors.

What a sample looks like depends on ``(seed, epoch, tile index)`` alone, never on the number of workers,
the order of shards or the neighbours in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from refocus.data.tiles import Tile
from refocus.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class TileBatch:
    """Tiles on their way to the training device.

    Parameters
    ----------
    pixels : Tensor, float32, shape (B, C, H, W)
        Normalised by image: a plane as the microscope saw it, or a sharp tile.
    target : Tensor, float32, shape (B, C, H, W)
        The in-focus plane in the same normalisation; equal to `pixels` for sharp tiles.
    is_sharp : Tensor, bool, shape (B,)
        True where random defocus has still to be applied.
    blur_radius_px : Tensor, float32, shape (B,)
        Geometric radius of the defocus disc; NaN where the optics or the z step are unknown.
    pixel_size_um : Tensor, float32, shape (B,)
        NaN where unknown.
    index : Tensor, int64, shape (B,)
        The tile's own number: the key of every random choice about it.
    epoch : Tensor, int64, shape (B,)
        Which pass over the data this is: the other key.
    """

    pixels: Tensor
    target: Tensor
    is_sharp: Tensor
    blur_radius_px: Tensor
    pixel_size_um: Tensor
    index: Tensor
    epoch: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> TileBatch:
        """Return the batch on `device`."""
        return TileBatch(**{k: v.to(device, non_blocking=non_blocking) for k, v in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields by name, as Ray Data carries them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def joined(cls, batches: Sequence[TileBatch]) -> TileBatch:
        """Return several batches of one window size as one, row after row."""
        if len(batches) == 1:
            return batches[0]
        return cls(**{f.name: torch.cat([getattr(batch, f.name) for batch in batches]) for f in fields(cls)})

    def __len__(self) -> int:
        return self.pixels.shape[0]


class BatchAssembler:
    """Turns rows of a shard into a `TileBatch`.

    Parameters
    ----------
    window_px : int
        Side of the square windows. Tiles that are smaller are mirrored at their rim.
    channels : {1, 3}
        What the network sees. A colour tile becomes one of its channels or its mean for a network of
        one channel; a grey tile is repeated for a network of three.
    seed : int
    epoch : int
    """

    def __init__(self, *, window_px: int, channels: int, seed: int, epoch: int = 0) -> None:
        if channels not in (1, 3):
            raise ConfigurationError(f"channels is {channels}; networks see 1 (grey) or 3 (RGB).")
        self.window_px = window_px
        self.channels = channels
        self.seed = seed
        self.epoch = epoch

    def __call__(self, rows: pa.Table) -> dict[str, Tensor]:
        """Return the batch's tensors by name: what Ray Data's ``collate_fn`` must give."""
        return self.assemble([Tile.from_row(row) for row in rows.to_pylist()]).tensors()

    def assemble(self, tiles: list[Tile]) -> TileBatch:
        """Return one batch of `tiles`.

        Raises
        ------
        ConfigurationError
            If a tile has neither 1 nor 3 channels.
        """
        windows = [self._window(tile) for tile in tiles]
        return TileBatch(
            pixels=torch.from_numpy(np.stack([pixels for pixels, _ in windows])),
            target=torch.from_numpy(np.stack([target for _, target in windows])),
            is_sharp=torch.tensor([tile.kind == "sharp" for tile in tiles]),
            blur_radius_px=torch.tensor([_blur_radius_px(tile) for tile in tiles], dtype=torch.float32),
            pixel_size_um=torch.tensor([_or_nan(tile.pixel_size_um) for tile in tiles], dtype=torch.float32),
            index=torch.tensor([tile.index for tile in tiles], dtype=torch.int64),
            epoch=torch.full((len(tiles),), self.epoch, dtype=torch.int64),
        )

    def _window(self, tile: Tile) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        rng = np.random.default_rng([self.seed, self.epoch, tile.index])
        y = int(rng.integers(max(tile.pixels.shape[1] - self.window_px, 0) + 1))
        x = int(rng.integers(max(tile.pixels.shape[2] - self.window_px, 0) + 1))
        channel = int(rng.integers(4))

        def cut(image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
            window = image[:, y : y + self.window_px, x : x + self.window_px].astype(np.float32)
            window = (self._with_channels(window, channel, tile) - tile.offset) / tile.scale
            missing = [(0, 0)] + [(0, self.window_px - size) for size in window.shape[1:]]
            return np.pad(window, missing, mode="symmetric") if any(m for _, m in missing) else window

        pixels = cut(tile.pixels)
        return pixels, pixels if tile.target is None else cut(tile.target)

    def _with_channels(self, window: npt.NDArray[np.float32], channel: int, tile: Tile) -> npt.NDArray[np.float32]:
        have = window.shape[0]
        if have == self.channels:
            return window
        if have == 1:
            return np.repeat(window, self.channels, axis=0)
        if have == 3:
            return window.mean(0, keepdims=True) if channel == 3 else window[channel : channel + 1]
        raise ConfigurationError(f"{tile.source} has {have} channels; tiles have 1 (grey) or 3 (RGB).")


def _blur_radius_px(tile: Tile) -> float:
    if tile.kind == "sharp":
        return 0.0
    known = (tile.defocus_um, tile.numerical_aperture, tile.pixel_size_um)
    if any(value is None for value in known):
        return float("nan")
    defocus_um, aperture, pixel_um = (float(value) for value in known if value is not None)
    sine = min(aperture / (tile.refractive_index or 1.0), 0.999)
    return abs(defocus_um) * sine / float(np.sqrt(1 - sine**2)) / pixel_um


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
