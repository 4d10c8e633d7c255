"""Whatever has happened to a file on its way, the answer is its pixels or one of our errors."""

from __future__ import annotations

import contextlib
import io
import logging
import struct

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from refocus.errors import InputError, UnreadableImage
from refocus.io.microscopy import open_image

PIXELS = np.random.default_rng(0).integers(0, 60_000, (3, 24, 32), np.uint16)
RGB = np.random.default_rng(1).integers(0, 255, (24, 32, 3), np.uint8)
# Damage may say anything: a quarter of the pixels that damage to a short file could never fill.
LARGEST_PIXELS_READ = 2**26


def tiff(pixels: np.ndarray, photometric="minisblack", **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric=photometric, **options)
    return file.getvalue()


def by_pillow(container: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, container)
    return file.getvalue()


SOUND = {
    "contiguous": tiff(PIXELS, metadata={"axes": "ZYX"}),
    "ome": tiff(PIXELS, ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 0.3}),
    "imagej": tiff(PIXELS, imagej=True, metadata={"axes": "ZYX", "spacing": 0.5, "unit": "um"}),
    "bigtiff": tiff(PIXELS, bigtiff=True, metadata={"axes": "ZYX"}),
    "deflate": tiff(PIXELS, compression="zlib", metadata={"axes": "ZYX"}),
    "tiled lzw": tiff(PIXELS, compression="lzw", predictor=True, tile=(16, 16), metadata={"axes": "ZYX"}),
    "colour": tiff(RGB, photometric="rgb"),
    "png": by_pillow("PNG"),
    "jpeg": by_pillow("JPEG"),
}


@pytest.fixture(autouse=True)
def _quiet_tifffile():
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", SOUND)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_give_pixels_or_one_of_our_errors(kind, data):
    damaged = bytearray(SOUND[kind])
    # Most of what can go wrong sits in the first bytes: header, first directory, its text.
    places = st.integers(0, len(damaged) - 1) | st.integers(0, min(600, len(damaged)) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=6)):
        damaged[place] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.just(len(damaged)) | st.integers(0, len(damaged)))]
    with contextlib.suppress(InputError), open_image(bytes(damaged), name=kind) as image:
        assert np.prod(image.shape) <= LARGEST_PIXELS_READ
        assert image.stack().pixels.shape == image.shape


def promising(tag: int, value: int) -> bytes:
    """A deflated TIFF whose first directory says `value` for a tag."""
    data = bytearray(tiff(PIXELS[0], compression="zlib", metadata=None, rowsperstrip=24))
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack("<H", data[entry : entry + 2])[0] == tag:
            data[entry : entry + 12] = struct.pack("<HHII", tag, 4, 1, value)
    return bytes(data)


@pytest.mark.parametrize(("tag", "name"), [(256, "width"), (257, "height"), (277, "samples a pixel")])
def test_a_header_that_promises_terabytes_is_refused_before_memory_is_taken(tag, name):
    with pytest.raises((UnreadableImage, InputError)):
        open_image(promising(tag, 2**31 - 8), name="plate7.tif")


def test_a_large_empty_plane_is_not_taken_for_damage():
    empty = np.zeros((6000, 8000), np.uint16)
    with open_image(tiff(empty, compression="zlib"), name="empty.tif") as image:
        assert image.shape == empty.shape
