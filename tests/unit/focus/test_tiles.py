from __future__ import annotations

import numpy as np
import pytest

from refocus.errors import ConfigurationError, InputError
from refocus.focus.plane import focus_curve
from refocus.focus.tiles import focus_map
from refocus.optics.settings import OpticalSystem

from .conftest import cells, noisy, series

SYSTEM = OpticalSystem(numerical_aperture=0.5, wavelength_um=0.525, pixel_size_um=0.4)


def test_two_halves_at_two_heights_are_told_apart():
    rng = np.random.default_rng(1)
    emission = cells(128, rng)
    low = series(emission, SYSTEM, (np.arange(15) - 4.6) * 1.5)
    high = series(emission, SYSTEM, (np.arange(15) - 9.3) * 1.5)
    found = focus_map(noisy(np.concatenate([low, high], axis=2), 5.0, rng), tile_px=64)
    assert found.position.shape == (2, 4)
    np.testing.assert_allclose(found.position[:, :2], 4.6, atol=0.3)
    np.testing.assert_allclose(found.position[:, 2:], 9.3, atol=0.3)
    assert (found.confidence > 0.5).all()
    assert not found.at_edge.any()


def test_tiles_cover_every_pixel_once_and_know_their_centres():
    planes = np.random.default_rng(2).random((3, 100, 165))
    found = focus_map(planes, tile_px=32)
    assert found.position.shape == (3, 5)
    # Sides 33, 34, 33 and five times 33: centres of [0, 33), [33, 67), [67, 100).
    np.testing.assert_allclose(found.center_y_px, [16, 49.5, 83])
    np.testing.assert_allclose(found.center_x_px, [16, 49, 82, 115, 148])


def test_one_tile_as_large_as_the_plane_is_the_plane():
    planes = np.random.default_rng(3).random((6, 48, 48))
    found = focus_map(planes, tile_px=48)
    np.testing.assert_allclose(found.curves[:, 0, 0], focus_curve(planes))


def test_a_tile_of_background_is_not_trusted():
    rng = np.random.default_rng(4)
    clean = series(cells(128, rng), SYSTEM, (np.arange(15) - 7.2) * 1.5)
    clean[:, :, 64:] = 5.0
    found = focus_map(noisy(clean, 5.0, rng), tile_px=32)
    assert (found.confidence[:, :2] > 0.5).all()
    assert np.median(found.confidence[:, 2:]) < 0.2


def test_a_tile_whose_focus_lies_outside_the_series_is_flagged():
    rng = np.random.default_rng(5)
    planes = series(cells(96, rng), SYSTEM, (np.arange(8) + 3.0) * 1.5)
    found = focus_map(planes, tile_px=48)
    assert found.at_edge.all()
    assert (found.confidence == 0).all()


def test_what_cannot_be_tiled_is_refused():
    with pytest.raises(ConfigurationError, match="at least 16"):
        focus_map([np.ones((32, 32))], tile_px=8)
    with pytest.raises(InputError, match="no plane"):
        focus_map([])
    with pytest.raises(InputError, match="plane 1 has shape"):
        focus_map([np.ones((32, 32)), np.ones((32, 31))])
