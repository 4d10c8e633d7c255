"""A window of a plane is the plane, cut; whatever lies behind, and for little more than its own bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from refocus.errors import ConfigurationError, UnreadableImage, UnsupportedImage
from refocus.io.microscopy import open_image

STACK = np.random.default_rng(0).integers(0, 60_000, (4, 45, 52), np.uint16)
RGB = np.random.default_rng(1).integers(0, 255, (45, 52, 3), np.uint8)
GREY = {"photometric": "minisblack", "metadata": {"axes": "ZYX"}}


class CountedFile(io.BytesIO):
    """A file that counts the bytes that are read from it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data

    def readinto(self, buffer) -> int:
        count = super().readinto(buffer)
        self.bytes_read += count
        return count


def tiff(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def page_by_page(**options) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for plane in STACK:
            writer.write(plane, contiguous=False, metadata=None, **options)
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    return file.getvalue()


LAYOUTS = {
    "in one piece": (tiff(STACK, **GREY), STACK),
    "big-endian": (tiff(STACK, byteorder=">", **GREY), STACK),
    "page by page": (page_by_page(), STACK),
    "page by page, deflated": (page_by_page(compression="zlib", rowsperstrip=10), STACK),
    "strips": (tiff(STACK, compression="zlib", rowsperstrip=7, **GREY), STACK),
    "predicted strips": (tiff(STACK, compression="lzw", predictor=True, rowsperstrip=16, **GREY), STACK),
    "tiles": (tiff(STACK, tile=(16, 32), **GREY), STACK),
    "compressed tiles": (tiff(STACK, tile=(16, 16), compression="zstd", byteorder=">", **GREY), STACK),
    "colour": (tiff(RGB, photometric="rgb"), RGB[None]),
    "colour in tiles": (tiff(RGB, photometric="rgb", tile=(16, 16), compression="deflate"), RGB[None]),
    "colour sample by sample": (
        tiff(RGB.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate", compression="deflate"),
        RGB[None],
    ),
    "PNG": (png(), RGB[None]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_a_window_is_the_plane_cut(layout, data):
    encoded, pixels = LAYOUTS[layout]
    top, left = data.draw(st.integers(0, 44)), data.draw(st.integers(0, 51))
    rows = slice(top, data.draw(st.integers(top + 1, 45)))
    columns = slice(left, data.draw(st.integers(left + 1, 52)))
    z = data.draw(st.integers(0, len(pixels) - 1))
    with open_image(encoded, axes="ZYX" if layout.startswith("page") else None) as image:
        found = image.window(rows, columns, z=z)
    assert found.dtype == pixels.dtype
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels[z, rows, columns])


@pytest.mark.parametrize("version", [2, 3])
def test_a_window_of_an_ome_zarr_is_the_plane_cut(tmp_path, version):
    image = {
        "axes": [{"name": name, "type": "space", "unit": "micrometer"} for name in "zxy"],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}],
    }
    attributes = {"multiscales": [image]} if version == 2 else {"ome": {"version": "0.5", "multiscales": [image]}}
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=version, attributes=attributes)
    group.create_array("0", shape=(4, 52, 45), dtype="uint16", chunks=(2, 16, 16))[...] = STACK.transpose(0, 2, 1)
    with open_image(tmp_path / "a.zarr") as source:
        np.testing.assert_array_equal(source.window(slice(5, 40), slice(10, 20), z=3), STACK[3, 5:40, 10:20])


def test_open_ends_and_negative_numbers_count_as_for_an_array():
    with open_image(LAYOUTS["tiles"][0]) as image:
        np.testing.assert_array_equal(image.window(slice(None), slice(-5, None), z=1), STACK[1, :, -5:])
        np.testing.assert_array_equal(image.window(slice(40, 99), slice(0, 3)), STACK[0, 40:, :3])


@pytest.mark.parametrize("rows", [slice(5, 5), slice(45, 60), slice(0, 10, 2)])
def test_windows_that_are_empty_or_have_steps_are_refused(rows):
    with open_image(LAYOUTS["tiles"][0], name="plate7.tif") as image, pytest.raises(ConfigurationError, match="plate7"):
        image.window(rows, slice(0, 5))


def test_a_position_that_is_not_there_is_refused():
    with open_image(LAYOUTS["tiles"][0]) as image, pytest.raises(ConfigurationError, match="4 positions along Z"):
        image.window(slice(0, 5), slice(0, 5), z=4)


@pytest.mark.parametrize(
    ("options", "share"),
    [
        # 64 of 2048 rows; 2 of 32 strips; 4 of 32 x 32 tiles, for the window lies across their borders.
        ({}, 1 / 32),
        ({"compression": "zlib", "rowsperstrip": 64}, 2 / 32),
        ({"compression": "zlib", "tile": (64, 64)}, 4 / 1024),
        ({"tile": (64, 64)}, 4 / 1024),
    ],
    ids=str,
)
def test_a_window_of_a_large_plane_costs_the_part_that_it_touches(options, share):
    plane = np.random.default_rng(2).integers(0, 60_000, (2048, 2048), np.uint16)
    file = CountedFile(tiff(plane, photometric="minisblack", **options))
    with open_image(file) as image:
        before = file.bytes_read
        found = image.window(slice(1000, 1064), slice(500, 564))
        # Noise does not shrink; deflate adds less than a hundredth.
        assert file.bytes_read - before <= share * plane.nbytes * 1.01
    np.testing.assert_array_equal(found, plane[1000:1064, 500:564])


def test_a_broken_strip_is_found_by_the_windows_that_need_it_alone():
    data = bytearray(tiff(STACK[0], compression="zlib", rowsperstrip=9, photometric="minisblack"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset = file.pages.first.dataoffsets[2]
    data[offset : offset + 20] = bytes(20)
    with open_image(bytes(data), name="plate7.tif") as image:
        np.testing.assert_array_equal(image.window(slice(0, 18), slice(0, 52)), STACK[0, :18])
        with pytest.raises(UnreadableImage, match=r"plate7\.tif: plane 0"):
            image.window(slice(10, 20), slice(0, 5))


def test_volumetric_pages_are_refused_and_say_what_to_save_instead():
    with pytest.raises(UnsupportedImage, match="page of its own"):
        open_image(tiff(STACK, volumetric=True, tile=(2, 16, 16), **GREY))
