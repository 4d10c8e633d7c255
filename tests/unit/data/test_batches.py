import math

import numpy as np
import pytest
import torch

from refocus.data.batches import BatchAssembler
from refocus.data.tiles import Tile


def ramp_tile(height=40, width=50, channels=1, **changes) -> Tile:
    pixels = np.arange(channels * height * width, dtype=np.uint16).reshape(channels, height, width)
    fields = {
        "source": "raw/ramp.tif",
        "specimen": "ramp",
        "modality": "fluorescence",
        "kind": "sharp",
        "pixels": pixels,
        "target": None,
        "offset": 10.0,
        "scale": 4.0,
        "y_px": 0,
        "x_px": 0,
    }
    return Tile(**(fields | changes))


def test_pixels_are_normalised_by_the_constants_of_the_image():
    tile = ramp_tile(32, 32)
    batch = BatchAssembler(window_px=32, channels=1, seed=0).assemble([tile])
    np.testing.assert_array_equal(batch.pixels[0].numpy() * 4 + 10, tile.pixels)


def test_a_sample_does_not_depend_on_its_neighbours():
    tiles = [ramp_tile(source=f"raw/{i}.tif") for i in range(6)]
    assembler = BatchAssembler(window_px=16, channels=1, seed=3, epoch=2)
    together = assembler.assemble(tiles)
    apart = [assembler.assemble([tile]) for tile in reversed(tiles)]
    torch.testing.assert_close(together.pixels, torch.cat([b.pixels for b in reversed(apart)]), rtol=0, atol=0)


def test_epochs_see_other_crops():
    crops = [BatchAssembler(window_px=16, channels=1, seed=3, epoch=e).assemble([ramp_tile()]) for e in range(8)]
    assert len({float(batch.pixels[0, 0, 0, 0]) for batch in crops}) > 1


def test_pairs_are_cut_at_the_same_place():
    tile = ramp_tile(kind="pair")
    tile = ramp_tile(kind="pair", target=tile.pixels + 7)
    batch = BatchAssembler(window_px=16, channels=1, seed=1).assemble([tile])
    torch.testing.assert_close(batch.target - batch.pixels, torch.full_like(batch.pixels, 7 / 4))


def test_tiles_smaller_than_the_window_are_mirrored():
    batch = BatchAssembler(window_px=64, channels=1, seed=1).assemble([ramp_tile(20, 64)])
    assert batch.pixels.shape == (1, 1, 64, 64)
    torch.testing.assert_close(batch.pixels[0, 0, 20:40], batch.pixels[0, 0, :20].flip(0))


@pytest.mark.parametrize(("have", "want"), [(1, 3), (3, 1), (3, 3), (1, 1)])
def test_colour_and_grey_tiles_fit_networks_of_one_and_three_channels(have, want):
    batch = BatchAssembler(window_px=16, channels=want, seed=1).assemble([ramp_tile(channels=have)])
    assert batch.pixels.shape == (1, want, 16, 16)


def test_blur_radius_follows_from_optics_and_is_nan_where_they_are_unknown():
    known = ramp_tile(
        kind="pair", target=ramp_tile().pixels, defocus_um=-10.0, numerical_aperture=0.75, pixel_size_um=0.325
    )
    unknown = ramp_tile(kind="pair", target=ramp_tile().pixels, defocus_um=None)
    radii = BatchAssembler(window_px=16, channels=1, seed=1).assemble([known, unknown, ramp_tile()]).blur_radius_px
    # z tan(asin NA) / pixel = 10 * 0.75 / sqrt(1 - 0.75^2) / 0.325
    assert float(radii[0]) == pytest.approx(10 * 0.75 / math.sqrt(1 - 0.75**2) / 0.325)
    assert math.isnan(float(radii[1]))
    assert float(radii[2]) == 0.0
