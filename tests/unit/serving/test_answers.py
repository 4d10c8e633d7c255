"""The file that travels back: half widths beside planes, metadata that stay true."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile

from refocus.serving.answers import encode_answer
from refocus.serving.requests import RestoreAnswer
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
