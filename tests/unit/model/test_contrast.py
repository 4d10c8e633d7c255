import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from refocus.model.contrast import FEATURES, Contrast, features_of

BEND = np.array([1.0, -2.0, 1.0])


def octaves_as_scipy_has_them(tile):
    """Energy of each octave and of what remains, one tile after the other, in double precision."""
    level, energy = tile - tile.mean(), []
    for _ in range(6):
        energy.append(np.mean((level - ndimage.gaussian_filter(level, 1.0, mode="reflect")) ** 2))
        y, x = level.shape[0] // 2 * 2, level.shape[1] // 2 * 2
        level = level[:y, :x].reshape(y // 2, 2, x // 2, 2).mean((1, 3))
    return np.array([*energy, level.var()])


@pytest.fixture(scope="module")
def tiles():
    coins, camera = data.coins().astype(float), data.camera().astype(float)
    rng = np.random.default_rng(0)
    noise = 50 + rng.normal(0, 3, (128, 130))
    return np.stack([coins[:128, :130], 1e4 + camera[100:228, 100:230], noise, ndimage.gaussian_filter(noise, 4.0)])


def test_octaves_are_those_of_a_gaussian_pyramid_mirrored_at_the_rims(tiles):
    wanted = np.stack([octaves_as_scipy_has_them(tile) for tile in tiles])
    np.testing.assert_allclose(Contrast.of(tiles).energy, wanted, rtol=1e-3)


def test_noise_is_told_by_second_differences(tiles):
    bent = [ndimage.correlate1d(ndimage.correlate1d(tile, BEND, axis=-1), BEND, axis=-2) for tile in tiles]
    wanted = [(np.median(np.abs(each)) / 0.6745 / 6.0) ** 2 for each in bent]
    found = Contrast.of(tiles)
    np.testing.assert_allclose(found.noise_variance, wanted, rtol=1e-3)
    # 2% of a standard deviation are 4% of a variance.
    assert found.noise_variance[2] == pytest.approx(9.0, rel=0.08)


def test_white_noise_leaves_its_share_in_each_octave_and_ring():
    noise = np.random.default_rng(1).normal(0, 3, (16, 256, 256))
    found = Contrast.of(noise)
    np.testing.assert_allclose(found.energy.mean(0)[:4], found.noise.mean(0)[:4], rtol=0.05)
    np.testing.assert_allclose(found.rings.mean(0)[3:], 9.0, rtol=0.1)
    assert found.excess().max() < 6.0


def test_tiles_are_measured_together_as_one_by_one(tiles):
    together = Contrast.of(tiles).features()
    assert together.shape == (len(tiles), len(FEATURES))
    np.testing.assert_allclose(together, [features_of(tile) for tile in tiles], atol=1e-4)


def test_a_constant_tile_has_neither_structure_nor_noise():
    found = Contrast.of(np.full((1, 128, 128), 0.1))
    assert found.energy.max() == found.noise_variance.max() == 0.0
    assert np.isfinite(found.features()).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_the_type_of_the_pixels_does_not_matter(dtype):
    coins = data.coins()[None, :128, :128]
    np.testing.assert_allclose(Contrast.of(coins.astype(dtype)).features(), Contrast.of(coins).features(), atol=1e-4)
