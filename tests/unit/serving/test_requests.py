"""What an image is taken for: its colours, and its optics by whoever tells them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from refocus.errors import ConfigurationError
from refocus.serving.requests import colors_held, optics_of
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


def _merged_fluorescence() -> np.ndarray:
    """Two channels of spots on a dark ground, [1, Y, X, 3]; the third is empty."""
    rng = np.random.default_rng(0)
    spots = ndimage.gaussian_filter((rng.random((2, 96, 96)) < 0.004).astype(float), (0, 2, 2))
    return np.stack([*(200 * spots / spots.max() + 12 + rng.random((2, 96, 96))), np.zeros((96, 96))], -1)[None]


def _section() -> np.ndarray:
    """Two stains on bright ground, [1, Y, X, 3]."""
    rng = np.random.default_rng(1)
    amount = ndimage.gaussian_filter(rng.random((96, 96, 1)), (3, 3, 0))
    amount = (amount - amount.min()) / np.ptp(amount)
    return rng.poisson(235 * np.exp(-amount * [0.5, 1.2, 0.7]))[None]


def test_channels_merged_on_a_dark_ground_are_no_section():
    assert colors_held(_merged_fluorescence().astype(np.uint8)) == 1
    assert colors_held(_section().astype(np.uint8)) == 3


def test_a_section_padded_with_black_is_a_section():
    padded = np.pad(_section(), ((0, 0), (0, 160), (0, 60), (0, 0))).astype(np.uint8)
    assert np.median(padded) == 0
    assert colors_held(padded) == 3
