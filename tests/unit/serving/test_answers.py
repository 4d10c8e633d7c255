"""The file that travels back: half widths beside planes, metadata that stay true."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile

from refocus.serving.answers import encode_answer
from refocus.serving.requests import RestoreAnswer
from refocus.wire.codec import decode
from refocus.wire.image import WireImage


def answer_of(planes: np.ndarray, half_width: np.ndarray) -> RestoreAnswer:
    return RestoreAnswer(
        planes=planes,
        model="tiny",
        digest="d" * 64,
        out_of_range_share=0.0,
        blur_radius_px=np.zeros((len(planes), 1, 1), np.float32),
        stride_px=8,
        half_width=half_width,
    )


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32"])
def test_half_widths_above_the_largest_integer_are_the_largest_integer(dtype):
    planes = np.zeros((1, 8, 8), dtype)
    widths = np.full(planes.shape, 1e10, np.float32)
    pages = tifffile.imread(io.BytesIO(encode_answer(WireImage(planes), answer_of(planes, widths), "tiff")))
    assert pages.dtype == planes.dtype
    assert (pages[1] == np.iinfo(dtype).max).all()


def pages_with_widths(**options) -> tifffile.TiffFile:
    sink = io.BytesIO()
    tifffile.imwrite(sink, np.zeros((2, 8, 8), np.uint16), **options)
    image = decode(sink.getvalue())
    body = encode_answer(image, answer_of(image.planes, np.ones(image.planes.shape, np.float32)), "tiff")
    assert decode(body).pixel_size_um == pytest.approx(0.25)
    return tifffile.TiffFile(io.BytesIO(body))


@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True, "resolution": (4.0, 4.0), "metadata": {"axes": "ZYX", "unit": "um"}},
        {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}},
        {"metadata": {"axes": "ZYX"}, "resolution": (40000, 40000), "resolutionunit": "CENTIMETER"},
    ],
    ids=["imagej", "ome", "shaped"],
)
def test_pixel_sizes_outlive_a_description_that_counts_pages(options):
    with pages_with_widths(**options) as file:
        assert len(file.pages) == 4
        assert file.pages[0].description.splitlines()[0] == (
            "Pages 1-2: in focus; 3-4: half widths of the 90% interval, in the image's units"
        )


def test_words_of_the_file_stay_before_those_on_the_pages():
    options = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER", "metadata": None}
    with pages_with_widths(description="slide 7", **options) as file:
        first, second, third = file.pages[0].description.splitlines()
    assert (first, second[:9], third[:8]) == ("slide 7", "Pages 1-2", "Refocus:")


def test_half_widths_count_upwards_beside_an_image_in_which_white_is_zero():
    sink = io.BytesIO()
    tifffile.imwrite(sink, np.full((8, 8), 60000, np.uint16), photometric="miniswhite", metadata=None)
    image = decode(sink.getvalue())
    body = encode_answer(image, answer_of(image.planes, np.full(image.planes.shape, 3.0, np.float32)), "tiff")
    with tifffile.TiffFile(io.BytesIO(body)) as file:
        assert [page.photometric.name for page in file.pages] == ["MINISBLACK"] * 2
        assert [int(page.asarray()[0, 0]) for page in file.pages] == [65535 - 60000, 3]
