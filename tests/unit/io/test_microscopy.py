from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pytest
import tifffile

from refocus.errors import UnreadableImage
from refocus.io.microscopy import check_finite, open_image
from refocus.zstack import Acquisition

GREY = np.random.default_rng(0).integers(0, 255, (20, 30), np.uint8)


@pytest.mark.parametrize("pixels", [GREY, GREY.astype(np.uint16) * 200, np.stack([GREY] * 3, axis=-1)], ids=str)
def test_a_png_reads_as_it_was_written(pixels):
    with open_image(imagecodecs.png_encode(pixels), answers=Acquisition(pixel_size_um=0.5)) as image:
        assert image.axes == ("YXS" if pixels.ndim == 3 else "YX")
        assert image.dtype == pixels.dtype
        assert image.acquisition.pixel_size_um == 0.5
        np.testing.assert_array_equal(image.plane(), pixels)
        np.testing.assert_array_equal(image.stack().pixels, pixels)


def test_a_jpeg_reads_nearly_as_it_was_written():
    smooth = np.add.outer(np.arange(32), np.arange(48)).astype(np.uint8)
    with open_image(imagecodecs.jpeg_encode(smooth, level=95)) as image:
        # JPEG rounds its coefficients: a few grey levels.
        assert np.abs(image.plane().astype(int) - smooth).max() <= 4


def test_bytes_files_and_paths_give_one_image(tmp_path):
    path = tmp_path / "plate.tif"
    tifffile.imwrite(path, GREY)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes()), path.open("rb")):
        with open_image(source) as image:
            np.testing.assert_array_equal(image.plane(), GREY)


def test_the_suffix_is_not_asked(tmp_path):
    path = tmp_path / "plate.jpg"
    path.write_bytes(imagecodecs.png_encode(GREY))
    with open_image(path) as image:
        np.testing.assert_array_equal(image.plane(), GREY)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"name,plane\nplate7,3\n" * 10, "no image"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (imagecodecs.png_encode(GREY)[:200], "PNG"),
        (b"\xff\xd8\xff\xe0 no jpeg at all", "JPEG"),
        (b"II*\0", "complete"),
        (b"PK\x03\x04" + bytes(100), "no image"),
    ],
    ids=["0 bytes", "text", "png signature", "png cut", "jpeg junk", "tiff signature", "zip"],
)
def test_what_is_no_image_is_unreadable_and_named(tmp_path, content, said):
    path = tmp_path / "plate7.tif"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=said) as caught:
        open_image(path).stack()
    assert "plate7.tif" in str(caught.value)


def test_a_path_that_is_not_there_is_unreadable(tmp_path):
    with pytest.raises(UnreadableImage, match="No such file"):
        open_image(tmp_path / "gone.tif")


def test_a_file_that_cannot_be_used_is_closed(tmp_path):
    path = tmp_path / "note.tif"
    path.write_bytes(b"not an image")
    file = path.open("rb")
    with pytest.raises(UnreadableImage):
        open_image(file)
    assert file.closed


def test_a_file_that_is_read_whole_is_closed():
    file = io.BytesIO(imagecodecs.png_encode(GREY))
    open_image(file)
    assert file.closed


def test_closing_closes_the_file_and_may_be_repeated(tmp_path):
    path = tmp_path / "plate.tif"
    tifffile.imwrite(path, GREY)
    file = path.open("rb")
    image = open_image(file)
    image.close()
    image.close()
    assert file.closed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_counted(bad):
    plane = np.ones((10, 10), np.float32)
    plane[2, 3] = plane[4, 5] = bad
    with pytest.raises(UnreadableImage, match="2 pixels of 100"):
        check_finite(plane, "plate7 plane 3")
    check_finite(np.ones((10, 10), np.float32), "plate7")
    check_finite(GREY, "plate7")
