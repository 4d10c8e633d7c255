"""What an image is taken for: its colours, and its optics by whoever tells them."""

from __future__ import annotations

import numpy as np
import pytest

from refocus.errors import ConfigurationError
from refocus.serving.requests import optics_of
from refocus.wire.image import WireImage

PLANES = np.zeros((1, 8, 8), np.uint8)


def test_what_files_alone_say_is_left_out_in_silence_where_it_does_not_fit():
    assert optics_of(WireImage(PLANES, numerical_aperture=0.75)) is None
    assert optics_of(WireImage(PLANES, pixel_size_um=20.0, numerical_aperture=0.75)) is None
    assert optics_of(WireImage(PLANES, pixel_size_um=0.3, numerical_aperture=0.75), blind=True) is None


def test_a_pixel_size_alone_is_no_claim_about_the_blur():
    assert optics_of(WireImage(PLANES), pixel_size_um=0.3) is None
    assert optics_of(WireImage(PLANES), pixel_size_um=0.3, blind=True) is None


def test_a_caller_whose_pixels_do_not_fit_the_files_aperture_hears_whose_is_whose():
    with pytest.raises(ConfigurationError, match=r"na=0.75 \(from the file\) and pixel_size_um=20 do not fit"):
        optics_of(WireImage(PLANES, numerical_aperture=0.75), pixel_size_um=20.0)
