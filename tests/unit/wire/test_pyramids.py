"""How a TIFF lies in its file: tiles and pyramids come back as they were cut, of the pixels that come back."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from refocus.wire.image import ImageLimits
from refocus.wire.tiff import decode_tiff, encode_tiff


@pytest.mark.parametrize("shape", [(130, 198), (2, 131, 197), (131, 198, 3)])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_pyramid_comes_back_as_one_of_the_new_pixels(shape: tuple[int, ...], byteorder: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    colored = shape[-1] == 3
    smaller = (slice(None),) * (len(shape) - 2 - colored)
    kind = {"photometric": "rgb" if colored else "minisblack", "tile": (32, 48), "compression": "zlib"}
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, byteorder=byteorder, bigtiff=True) as file:
        file.write(pixels, subifds=2, metadata=None, **kind)
        for reduction in (2, 4):
            thinned = pixels[(*smaller, slice(None, None, reduction), slice(None, None, reduction))]
            file.write(thinned, subfiletype=1, metadata=None, **kind)
    image = decode_tiff(sink.getvalue(), ImageLimits())
    brighter = replace(image, planes=255 - image.planes)
    with tifffile.TiffFile(io.BytesIO(encode_tiff(brighter, None))) as file:
        for number, page in enumerate(file.pages):
            whole = brighter.planes[number].astype(float)
            assert page.tile == (32, 48)
            np.testing.assert_array_equal(page.asarray(), whole)
            halved, quartered = (level.asarray() for level in page.pages)
            assert halved.shape[:2] == (-(-whole.shape[0] // 2), 99)
            assert quartered.shape[:2] == (-(-whole.shape[0] // 4), 50)
            even = np.pad(whole, [(0, side % 2) for side in whole.shape[:2]] + [(0, 0)] * colored, mode="edge")
            pairs = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, *even.shape[2:])
            np.testing.assert_allclose(halved, pairs.mean((1, 3)), atol=0.5)
        assert len(file.pages) == len(brighter.planes)


def test_directories_that_are_no_pyramid_are_left_out() -> None:
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink) as file:
        file.write(pixels, subifds=2, metadata=None)
        file.write(pixels[:30, :30], subfiletype=0, metadata=None)
        file.write(pixels, subfiletype=1, metadata=None)
    assert decode_tiff(sink.getvalue(), ImageLimits()).options["reductions"] == ()
