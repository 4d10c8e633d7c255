"""Normalisation: once an image, robust, undone exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refocus.errors import ConfigurationError, UnsupportedImage
from refocus.model.normalisation import MOST_SAMPLES, Normalisation, estimate


def test_percentiles_of_a_ramp_are_the_closed_form() -> None:
    ramp = np.linspace(0.0, 1000.0, 100_001)
    found = estimate(ramp)
    assert found.offset == pytest.approx(10.0)
    assert found.scale == pytest.approx(988.0)


def test_absorbing_specimens_are_counted_from_the_bright_end() -> None:
    image = np.random.default_rng(2).gamma(2.0, 300.0, (200, 200))
    dark, bright = estimate(-image), estimate(image, absorbing=True)
    assert (bright.offset, bright.scale) == (-dark.offset, -dark.scale)
    assert bright.scale < 0
    np.testing.assert_allclose(bright.undo(bright.apply(image)), image, rtol=1e-5, atol=1e-3)


def test_a_hot_pixel_moves_nothing() -> None:
    image = np.random.default_rng(0).normal(100.0, 5.0, (512, 512))
    before = estimate(image)
    image[7, 7] = 1e6
    # One of 262144 pixels moves a percentile by less than one rank.
    assert estimate(image).scale == pytest.approx(before.scale, rel=1e-2)


def test_sparse_points_are_not_scaled_by_their_background() -> None:
    image = np.random.default_rng(1).normal(100.0, 1.0, (512, 512))
    image[::64, ::64] = 10_000.0  # 0.02 % of pixels: above the 99.99th percentile, below the 99.8th
    assert estimate(image).scale == pytest.approx(9_900 / 8, rel=0.01)


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_constant_images_get_scale_one(value: int) -> None:
    assert estimate(np.full((9, 9), value, np.uint16)) == Normalisation(float(value), 1.0)


def test_a_single_pixel_has_a_normalisation() -> None:
    assert estimate(np.array([[3]], np.uint8)) == Normalisation(3.0, 1.0)


def test_one_bright_pixel_in_a_constant_image_still_gives_a_scale() -> None:
    image = np.zeros((256, 256), np.uint8)
    image[3, 3] = 200
    assert estimate(image).scale == 200.0


def test_large_images_are_sampled_on_a_grid_without_a_copy_of_the_whole() -> None:
    image = np.broadcast_to(np.arange(5000, dtype=np.uint16), (5000, 5000))
    assert image.size > MOST_SAMPLES
    # The grid's step is 3: percentiles of the ramp shift by at most that.
    assert estimate(image).offset == pytest.approx(50.0, abs=3.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(UnsupportedImage, match="NaN or infinities"):
        estimate(np.array([[0.0, bad], [1.0, 2.0]]))


@pytest.mark.parametrize("image", [np.zeros((0, 3)), np.zeros((2, 2), np.complex64), np.array([["a"]])])
def test_what_has_no_grey_levels_is_refused(image: np.ndarray) -> None:
    with pytest.raises(UnsupportedImage, match="no grey levels"):
        estimate(image)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 0.0), (np.nan, 1.0), (0.0, np.inf), (0.0, -np.inf)])
def test_impossible_constants_are_refused(offset: float, scale: float) -> None:
    with pytest.raises(ConfigurationError, match="must be finite"):
        Normalisation(offset, scale)


@settings(max_examples=50, deadline=None)
@given(
    offset=st.floats(-1e4, 1e4),
    scale=st.floats(1e-2, 1e5),
    values=st.lists(st.integers(0, 65535), min_size=1, max_size=20),
)
def test_undo_takes_apply_back(offset: float, scale: float, values: list[int]) -> None:
    pixels = np.array(values, np.uint16)
    there_and_back = Normalisation(offset, scale).undo(Normalisation(offset, scale).apply(pixels))
    # Normalised values are float32: their rounding is 6e-8 of the largest number on the way.
    assert np.abs(there_and_back - pixels).max() <= 2e-7 * (65535 + abs(offset) + scale)


def test_wide_integers_keep_differences_that_float32_cannot_hold() -> None:
    pixels = np.array([2**31, 2**31 + 1], np.uint32)
    assert np.diff(Normalisation(2.0**31, 1.0).apply(pixels)) == 1.0


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", ">u2", "i2", ">i2"])
@pytest.mark.parametrize("absorbing", [False, True])
def test_counted_percentiles_are_those_of_sorted_values(kind: str, absorbing: bool) -> None:
    limits = np.iinfo(kind)
    # Of these numbers of pixels percentiles lie on values, and between them.
    for count in (1, 2, 101, 4567):
        pixels = np.random.default_rng(count).integers(limits.min, limits.max + 1, (count, 2)).astype(kind)[:, 0]
        assert estimate(pixels, absorbing=absorbing) == estimate(pixels.astype(np.float64), absorbing=absorbing)
