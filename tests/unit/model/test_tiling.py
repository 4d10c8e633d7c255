"""Tiles: everything covered once, nothing seen at the joins, memory bounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from refocus.errors import ConfigurationError
from refocus.model.networks import Prediction
from refocus.model.tiling import Float32, HaloGrid, Window, run_tiled

SIZES = [(1, 1), (17, 300), (64, 64), (200, 331), (129, 64)]


def _grid(height: int, width: int) -> HaloGrid:
    return HaloGrid(height, width, stride_px=4, tile_px=64, halo_px=12, blend_px=8)


def _run(image: Float32, predict, grid: HaloGrid, **more) -> tuple[Float32, Float32 | None]:
    result = np.full_like(image, np.nan)
    scale = np.full_like(image, np.nan) if more.get("with_scale") else None

    def read(window: Window) -> torch.Tensor:
        return torch.from_numpy(image[(slice(None), *window)])

    for band in run_tiled(read, predict, grid, channels=image.shape[0], **more):
        result[:, band.rows] = band.image
        if scale is not None:
            scale[:, band.rows] = band.scale
    return result, scale


def _local_mean(x: torch.Tensor) -> Prediction:
    """A stand-in of reach 10 px, well inside the halo: zero-padded at tile edges as convolutions are."""
    kernel = torch.ones(x.shape[1], 1, 21, 21) / 441
    image = F.conv2d(x, kernel, padding=10, groups=x.shape[1])
    return Prediction(image, torch.log(x.abs() + 1), F.avg_pool2d(x[:, :1], 4, ceil_mode=True))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_weights_of_all_tiles_add_to_one_everywhere(height: int, width: int) -> None:
    grid = _grid(height, width)
    total = np.zeros((height, width))
    for row in range(grid.rows):
        for tile in grid.row(row):
            d, a = tile.down, tile.across
            total[d.keep_from : d.keep_to, a.keep_from : a.keep_to] += d.weights()[:, None] * a.weights()
    np.testing.assert_allclose(total, 1.0, atol=1e-6)  # float32 ramps


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tiles_give_what_the_whole_image_gives(height: int, width: int) -> None:
    image = np.random.default_rng(0).random((2, height, width), np.float32)
    tiled, scale = _run(image, _local_mean, _grid(height, width), with_scale=True)
    whole = _local_mean(torch.from_numpy(image[None]))
    # The same sums of 441 float32 numbers in another order.
    np.testing.assert_allclose(tiled, whole.image[0].numpy(), atol=1e-5)
    assert scale is not None
    np.testing.assert_allclose(scale, image + 1, rtol=1e-5)


def test_the_blur_map_is_the_whole_images() -> None:
    image = np.random.default_rng(1).random((1, 201, 330), np.float32)
    blur = np.full((51, 83), np.nan, np.float32)
    _run(image, _local_mean, _grid(201, 330), blur_radius_px=blur)
    whole = _local_mean(torch.from_numpy(image[None])).blur_radius_px[0, 0].numpy()
    np.testing.assert_allclose(blur, whole, atol=1e-6)  # means of the same 16 numbers


def test_batches_stay_within_the_budget_and_progress_ends_at_all() -> None:
    seen: list[int] = []
    told: list[tuple[int, int]] = []

    def predict(x: torch.Tensor) -> Prediction:
        seen.append(x.shape[0] * x.shape[2] * x.shape[3])
        return _local_mean(x)

    image = np.zeros((1, 64, 64 * 9), np.float32)
    budget = 30_000
    _run(image, predict, _grid(64, 64 * 9), pixels_per_batch=budget, progress=lambda *a: told.append(a))
    assert max(seen) <= budget
    assert len(seen) < 9
    assert told[-1] == (9, 9)


def test_tiles_start_at_multiples_of_the_stride() -> None:
    grid = HaloGrid(1000, 1000, stride_px=16, tile_px=200, halo_px=70, blend_px=20)
    for row in range(grid.rows):
        for tile in grid.row(row):
            assert tile.down.read_from % 16 == 0
            assert tile.across.read_from % 16 == 0


def test_sizes_that_make_no_tiles_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="not positive"):
        HaloGrid(0, 5)
    with pytest.raises(ConfigurationError, match="all blend"):
        HaloGrid(500, 500, tile_px=32, blend_px=32)
