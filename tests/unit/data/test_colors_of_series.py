"""What one channel of an image is, as ingest takes it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from refocus.data import series as series_module
from refocus.data.series import Series
from refocus.io.grid import Window
from refocus.io.microscopy import open_image
from refocus.training.validation import sharp_images_in

SIDE = 96


def light(seed: int) -> np.ndarray:
    """Spots on dark ground, uint8."""
    rng = np.random.default_rng(seed)
    spots = ndimage.gaussian_filter((rng.random((SIDE, SIDE)) < 0.004).astype(float), 2)
    return (200 * spots / spots.max() + 12 + rng.random((SIDE, SIDE))).astype(np.uint8)


def section() -> np.ndarray:
    """A stain on bright ground, uint8, shape (SIDE, SIDE, 3)."""
    rng = np.random.default_rng(1)
    amount = ndimage.gaussian_filter(rng.random((SIDE, SIDE, 1)), (3, 3, 0))
    amount = (amount - amount.min()) / np.ptp(amount)
    return rng.poisson(235 * np.exp(-amount * [0.5, 1.2, 0.7])).astype(np.uint8)


EMPTY = np.zeros((SIDE, SIDE), np.uint8)
COLORS = {
    "merged": (np.stack([light(0), light(1), EMPTY], -1), "fluorescence", 3),
    "green": (np.stack([EMPTY, light(2), EMPTY], -1), "fluorescence", 1),
    "grey": (np.repeat(light(3)[..., None], 3, -1), "fluorescence", 1),
    "section": (section(), "brightfield", 3),
}


def rgb(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    tifffile.imwrite(sink, pixels, photometric="rgb")
    return sink.getvalue()


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("name", COLORS)
def test_colours_are_what_they_show_in_ingest_and_in_evaluation(name, held, tmp_path, monkeypatch):
    pixels, modality, channels = COLORS[name]
    if not held:
        monkeypatch.setattr(series_module, "HELD_BYTES", 1000)
    series = Series(open_image(rgb(pixels), name=name), name)
    seen = series.read(0, Window(0, 0, SIDE, SIDE))
    assert (series.modality, series.modality_assumed) == (modality, True)
    assert seen.shape == ((SIDE, SIDE) if channels == 1 else (SIDE, SIDE, 3))
    np.testing.assert_array_equal(seen, pixels if channels == 3 else pixels[..., 1])
    (tmp_path / f"{name}.tif").write_bytes(rgb(pixels))
    (image,) = sharp_images_in(tmp_path, None)
    assert (image.modality, len(image.pixels)) == (modality, channels)
