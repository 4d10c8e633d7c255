from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from refocus.errors import InputError
from refocus.focus.alignment import Shift, align, shift_between, shifts_along
from refocus.optics.settings import OpticalSystem

from .conftest import cells, noisy, series

OBJECTIVE = OpticalSystem(numerical_aperture=0.75, wavelength_um=0.525, pixel_size_um=0.325)


def window(scene: np.ndarray, y_px: float, x_px: float) -> np.ndarray:
    """What a camera sees of a periodic scene that has moved by this much: new content comes in at the rim."""
    frequency_y, frequency_x = np.fft.fftfreq(scene.shape[0])[:, None], np.fft.rfftfreq(scene.shape[1])
    turned = np.fft.rfft2(scene) * np.exp(-2j * np.pi * (frequency_y * y_px + frequency_x * x_px))
    return np.fft.irfft2(turned, scene.shape)[64:-64, 64:-64]


def error_px(found: Shift, y_px: float, x_px: float) -> float:
    return float(np.hypot(found.y_px - y_px, found.x_px - x_px))


SHARP = ndimage.gaussian_filter(cells(320, np.random.default_rng(1)), 0.7, mode="wrap")


@given(y_px=st.floats(-20, 20), x_px=st.floats(-20, 20))
@settings(deadline=None, max_examples=40)
def test_a_shift_of_sharp_planes_is_recovered(y_px, x_px):
    found = shift_between(window(SHARP, 0, 0), window(SHARP, y_px, x_px))
    assert error_px(found, y_px, x_px) < 0.02  # noise-free: what the rim's new content leaves
    assert found.residual < 0.1


@pytest.mark.parametrize("defocus_um", [-6.0, -2.0, 1.0, 3.0, 8.0])
def test_shifts_are_recovered_within_a_tenth_of_a_pixel_whatever_the_blur(defocus_um):
    blurred = series(SHARP, OBJECTIVE, np.array([defocus_um]))[0]
    for y_px, x_px in ((0.0, 0.0), (0.4, -0.3), (3.37, -5.61), (-11.2, 7.5)):
        found = shift_between(window(blurred, 0, 0), window(SHARP, y_px, x_px))
        assert error_px(found, y_px, x_px) < 0.1


@pytest.mark.parametrize("defocus_um", [0.0, 1.0, 2.0])
def test_shifts_are_recovered_within_a_tenth_of_a_pixel_at_snr_5(defocus_um):
    rng = np.random.default_rng(2)
    blurred = series(SHARP, OBJECTIVE, np.array([defocus_um]))[0]
    errors = []
    for _ in range(10):
        y_px, x_px = rng.uniform(-6, 6, 2)
        pair = noisy(np.stack([window(blurred, 0, 0), window(SHARP, y_px, x_px)]), 5.0, rng)
        errors.append(error_px(shift_between(*pair), y_px, x_px))
    assert max(errors) < 0.1


def test_what_shift_between_says_is_what_align_undoes():
    moved, still = window(SHARP, -2.3, 1.6), window(SHARP, 0, 0)
    aligned = align(moved, shift_between(moved, still))
    inside = (slice(8, -8), slice(8, -8))
    # This scene reaches to the Nyquist frequency, where no finite kernel interpolates.
    assert np.std(aligned[inside] - still[inside]) < 0.02 * still.std()
    assert np.std(moved[inside] - still[inside]) > 0.5 * still.std()


def test_the_residual_tells_an_aligned_pair_from_planes_that_share_nothing():
    rng = np.random.default_rng(3)
    blurred = series(SHARP, OBJECTIVE, np.array([2.0]))[0]
    assert shift_between(window(blurred, 0, 0), window(SHARP, 1.5, 2.5)).residual < 0.1
    other = ndimage.gaussian_filter(cells(320, rng), 0.7, mode="wrap")
    assert shift_between(window(other, 0, 0), window(SHARP, 0, 0)).residual > 0.3


def test_brightness_and_offset_of_either_plane_do_not_matter():
    plane, target = window(SHARP, 0, 0), window(SHARP, 1.25, -2.5)
    assert error_px(shift_between(7 * plane + 1000, target / 9), 1.25, -2.5) < 0.02


def test_long_images_are_binned_and_their_shifts_still_counted_in_their_own_pixels():
    scene = ndimage.gaussian_filter(np.random.default_rng(4).random((1300, 1200)), 2, mode="wrap")
    found = shift_between(window(scene, 0, 0), window(scene, 5.3, -12.8))
    assert error_px(found, 5.3, -12.8) < 0.05


def test_planes_without_structure_do_not_move():
    flat = np.full((64, 64), 100, np.uint16)
    assert shift_between(flat, flat) == Shift(0.0, 0.0, 1.0)


def test_equal_planes_do_not_move_and_leave_no_residual():
    plane = window(SHARP, 0, 0)
    found = shift_between(plane, plane)
    assert error_px(found, 0, 0) < 1e-6
    assert found.residual < 1e-6


def test_drift_along_a_series_adds_up_towards_the_target():
    rng = np.random.default_rng(5)
    path = np.cumsum(rng.uniform(-0.6, 0.6, (9, 2)), axis=0)
    blurred = series(SHARP, OBJECTIVE, (np.arange(9) - 4.0) * 1.0)
    planes = [window(blurred[z], *path[z]) for z in range(9)]
    found = shifts_along(iter(planes), 4)
    assert found[4] == Shift(0.0, 0.0, 0.0)
    for z in range(9):
        # Every step's error is below 0.1 px whatever the blur (above), and mostly half of that.
        assert error_px(found[z], *(path[4] - path[z])) < 0.05 * max(1, abs(z - 4))


def test_contrast_that_inverts_along_a_series_does_not_mislead_neighbours():
    # Phase contrast in small: structure fades to grey and returns as its negative, with a background that stays.
    rng = np.random.default_rng(6)
    background = ndimage.gaussian_filter(rng.random((320, 320)), 1.5, mode="wrap") * 40
    planes = [window(SHARP * np.cos(z * np.pi / 8) + background, 0, 0.3 * z) for z in range(9)]
    found = shifts_along(planes, 8)
    assert error_px(found[0], 0.0, 2.4) < 0.3  # one eighth of the way, summed over eight steps


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("shift", [Shift(2.0, -3.0, 0.0), Shift(0.5, 1.25, 0.0)])
def test_align_keeps_shape_and_dtype(dtype, shift):
    plane = np.random.default_rng(7).integers(0, 100, (40, 50)).astype(dtype)
    moved = align(plane, shift)
    assert moved.shape == plane.shape
    assert moved.dtype == plane.dtype


def test_whole_pixels_are_moved_exactly_and_the_rim_repeats():
    plane = np.arange(48, dtype=np.uint16).reshape(6, 8)
    moved = align(plane, Shift(1.0, -2.0, 0.0))
    np.testing.assert_array_equal(moved[1:, :-2], plane[:-1, 2:])
    np.testing.assert_array_equal(moved[0, :-2], plane[0, 2:])
    np.testing.assert_array_equal(moved[1:, -1], plane[:-1, -1])


def test_integers_saturate_instead_of_wrapping():
    plane = np.zeros((32, 32), np.uint8)
    plane[:, 16:] = 255
    moved = align(plane, Shift(0.0, 0.5, 0.0))
    # Interpolation overshoots at a step; 255 + 20 must not become 19.
    assert moved[:, 18:].min() > 230
    assert moved[:, :14].max() < 25


@pytest.mark.parametrize("cycles_per_px", [0.05, 0.2, 0.35])
def test_half_a_pixel_costs_two_thousandths_of_a_wave(cycles_per_px):
    at = np.arange(200)
    wave, moved = (np.cos(2 * np.pi * cycles_per_px * (at - by)) for by in (0.0, 0.5))
    aligned = align(np.tile(wave, (4, 1)), Shift(0.0, 0.5, 0.0))
    np.testing.assert_allclose(aligned[:, 20:-20], np.tile(moved, (4, 1))[:, 20:-20], atol=0.002)


def test_noise_keeps_its_strength_wherever_it_moves():
    noise = np.random.default_rng(8).normal(size=(256, 256))
    # Half a pixel both ways is the worst: a linear shift leaves 0.25 of the variance, a quintic spline 0.69.
    assert align(noise, Shift(0.5, 0.5, 0.0)).var() > 0.8 * noise.var()


def test_colour_moves_sample_by_sample():
    grey = window(SHARP, 0, 0).astype(np.float32)
    colour = np.stack([grey, 2 * grey, -grey], axis=-1)
    moved = align(colour, Shift(1.3, 0.4, 0.0))
    for sample, factor in enumerate((1, 2, -1)):
        np.testing.assert_allclose(moved[..., sample], factor * align(grey, Shift(1.3, 0.4, 0.0)), atol=1e-3)


def test_no_shift_returns_the_plane_itself():
    plane = np.ones((20, 20))
    assert align(plane, Shift(0.0, 0.0, 0.0)) is plane


def test_planes_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match="one shape"):
        shift_between(np.ones((32, 32)), np.ones((32, 33)))
    with pytest.raises(InputError, match="16 x 16"):
        shift_between(np.ones((8, 8)), np.ones((8, 8)))
    with pytest.raises(InputError, match="NaN"):
        shift_between(np.full((32, 32), np.nan), np.ones((32, 32)))
    with pytest.raises(InputError, match="no plane 3"):
        shifts_along([np.ones((32, 32))] * 3, 3)


def test_a_real_light_sheet_series_drifts_smoothly_by_less_than_two_pixels(real_data):
    planes = tifffile.imread(real_data / "stacks" / "mitochondria_lightsheet.ome.tif")
    found = shifts_along(planes, 18)
    path = np.array([(shift.y_px, shift.x_px) for shift in found])
    assert np.abs(path).max() < 2
    # By way of two planes or of one: the same within a tenth of a pixel, on either side.
    for z in (14, 22):
        assert error_px(shift_between(planes[z], planes[18]), *path[z]) < 0.1
