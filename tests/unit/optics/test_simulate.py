from __future__ import annotations

import numpy as np
import pytest

from refocus.errors import ConfigurationError
from refocus.optics.simulate import simulate_focal_series
from refocus.optics.specimens import SPECIMENS, grow


def sharpness(stack: np.ndarray) -> np.ndarray:
    """Brenner's measure a plane, of the green channel where there are three."""
    grey = stack.astype(np.float64) if stack.ndim == 3 else stack[..., 1].astype(np.float64)
    return ((grey[:, :, 2:] - grey[:, :, :-2]) ** 2).mean((1, 2))


@pytest.mark.parametrize("kind", SPECIMENS)
def test_the_sharpest_plane_is_the_true_one(kind: str) -> None:
    stack, truth = simulate_focal_series(kind, planes=9, z_step_um=1.0, size_px=(96, 96), focus_plane=3.0, seed=1)
    assert truth.focus_plane == 3.0
    assert truth.defocus_um.tolist() == [-3, -2, -1, 0, 1, 2, 3, 4, 5]
    assert int(np.argmax(sharpness(stack.pixels))) == 3


def test_a_fluorescence_series_is_a_complete_z_stack() -> None:
    stack, truth = simulate_focal_series("puncta", planes=3, z_step_um=0.4, size_px=(64, 80), seed=2)
    assert stack.axes == "ZYX"
    assert stack.pixels.shape == (3, 64, 80)
    assert stack.pixels.dtype == np.uint16
    assert stack.acquisition.modality == "fluorescence"
    assert stack.acquisition.z_step_um == 0.4
    assert stack.acquisition.wavelength_um == 0.525
    assert truth.in_focus.shape == (64, 80)
    assert not truth.height_um.any()


def test_a_brightfield_series_has_three_8_bit_colours_and_a_bright_lamp() -> None:
    stack, truth = simulate_focal_series("tissue", planes=2, size_px=(64, 64), seed=2)
    assert stack.axes == "ZYXS"
    assert stack.pixels.shape == (2, 64, 64, 3)
    assert stack.pixels.dtype == np.uint8
    assert 100 < truth.in_focus.max() < 235
    assert stack.acquisition.wavelength_um is None


def test_the_plane_in_focus_is_the_truth_plus_noise() -> None:
    stack, truth = simulate_focal_series("nuclei", planes=3, size_px=(96, 96), focus_plane=1.0, seed=3)
    light = truth.in_focus.astype(np.float64) - 100  # the camera's offset
    variance = light * 0.5 + (0.5 * 1.6) ** 2 + 1 / 12  # gain 0.5 a electron, read noise 1.6 electrons, rounding
    deviation = (stack.pixels[1] - truth.in_focus) / np.sqrt(variance)
    # 9216 pixels: five standard errors.
    assert abs(deviation.mean()) < 5 / 96
    assert deviation.std() == pytest.approx(1.0, abs=5 / np.sqrt(2 * 9216))


def test_equal_seeds_give_equal_series() -> None:
    one, two, other = (simulate_focal_series("membranes", planes=2, size_px=(64, 64), seed=s)[0] for s in (5, 5, 6))
    assert np.array_equal(one.pixels, two.pixels)
    assert not np.array_equal(one.pixels, other.pixels)


def test_a_tilted_sheet_is_sharp_at_other_planes_on_either_side() -> None:
    stack, truth = simulate_focal_series(
        "puncta", planes=13, z_step_um=0.5, size_px=(96, 192), tilt_deg=4.0, thin=True, seed=7
    )
    for columns in (slice(0, 48), slice(144, 192)):
        best = int(np.argmax(sharpness(stack.pixels[:, :, columns])))
        expected = truth.focus_plane + truth.height_um[:, columns].mean() / 0.5
        # Within 48 columns the height spans 1.1 um, two planes.
        assert abs(best - expected) <= 1.2


def test_a_given_specimen_is_used_as_it_is() -> None:
    specimen = grow("puncta", size_px=(48, 64), pixel_size_um=0.325)
    stack, _ = simulate_focal_series(specimen, planes=2)
    assert stack.pixels.shape == (2, 48, 64)


def test_impossible_series_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected one of"):
        simulate_focal_series("unicorn")
    with pytest.raises(ConfigurationError, match="at least 1 plane"):
        simulate_focal_series("nuclei", planes=0)
