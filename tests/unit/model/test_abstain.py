import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from refocus.errors import InputError
from refocus.model.abstain import RangeGate, expand, fit_gate, flagged_share
from refocus.model.contrast import FEATURES, features_of


def texture(seed, blur_px, side=128, noise=0.02):
    """Blobs of many sizes under a Gaussian blur, with noise: all that differs is how far out of focus they are."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.fft2(rng.normal(size=(side, side)))
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)) + 1 / side
    image = np.fft.ifft2(spectrum * radius ** rng.uniform(-1.4, -1.0)).real
    image = ndimage.gaussian_filter(image / image.std(), blur_px, mode="wrap")
    return 10 + image + rng.normal(0, noise, image.shape)


@pytest.fixture(scope="module")
def gate():
    rng = np.random.default_rng(0)
    near = np.array([features_of(texture(seed, rng.uniform(0, 4))) for seed in range(240)])
    far = np.array([features_of(texture(1000 + seed, rng.uniform(6, 8))) for seed in range(240)])
    return fit_gate(near, far, largest_blur_px=4, tile_px=128)


def test_new_tiles_beyond_the_range_are_flagged_and_those_in_range_are_not(gate):
    rng = np.random.default_rng(1)
    near = [flagged_share(gate.judge(texture(5000 + s, rng.uniform(0, 4)))) for s in range(60)]
    far = [gate.judge(texture(6000 + s, rng.uniform(6, 8)))[0].reasons for s in range(60)]
    # Fitted to let 96% pass; 60 tiles know a share to 3 points.
    assert np.mean(near) <= 0.1
    assert np.mean(["out_of_range" in r for r in far]) >= 0.9


@pytest.mark.parametrize("height", [64, 72, 96, 120, 127])
def test_tiles_too_small_for_their_scales_are_not_taken_for_far_out_of_focus(height):
    tiles = [data.coins()[y : y + height, x : x + 256] for y in (0, 100) for x in (0, 100)]
    assert [RangeGate.shipped().judge(tile)[0].reasons for tile in tiles] == [()] * 4


def test_noise_alone_is_nothing_to_restore(gate):
    rng = np.random.default_rng(2)
    for noise in (rng.poisson(100, (128, 128)), 50 + rng.normal(0, 3, (128, 128)), rng.uniform(0, 1, (128, 128))):
        assert gate.judge(noise.astype(np.float64))[0].reasons == ("no_structure",)


def test_an_empty_image_is_nothing_to_restore(gate):
    assert gate.judge(np.full((128, 128), 7, np.uint8))[0].flagged


def test_a_plateau_at_the_top_is_saturation(gate):
    image = texture(1, 2)
    assert "saturated" not in gate.judge(image)[0].reasons
    clipped = np.minimum(image, np.quantile(image, 0.8))
    assert "saturated" in gate.judge(clipped)[0].reasons
    assert "saturated" not in gate.judge(clipped, saturation_level=65535)[0].reasons


def test_white_ground_is_not_saturation_where_the_specimen_absorbs(gate):
    image = texture(1, 2)
    white = np.maximum(image, np.quantile(image, 0.26))
    section = np.stack([255 * (1 - (white - white.min()) / np.ptp(white))] * 3).astype(np.uint8)
    assert np.mean(section == 255) > 0.2
    assert "saturated" in gate.judge(section)[0].reasons
    assert "saturated" not in gate.judge(section, absorbing=True)[0].reasons
    assert flagged_share(gate.judge(section, absorbing=True)) <= flagged_share(gate.judge(section))


def test_a_plateau_of_black_is_saturation_where_the_specimen_absorbs(gate):
    image = texture(1, 2)
    opaque = np.maximum(image, np.quantile(image, 0.2))
    assert "saturated" not in gate.judge(opaque)[0].reasons
    assert "saturated" in gate.judge(opaque, absorbing=True)[0].reasons
    assert "saturated" not in gate.judge(opaque, absorbing=True, saturation_level=0)[0].reasons


def test_stripes_are_unlike_anything_seen(gate):
    y, _ = np.mgrid[:128, :128]
    stripes = 10 + np.sin(2 * np.pi * y / 4) + np.random.default_rng(0).normal(0, 0.02, y.shape)
    assert "unfamiliar" in gate.judge(stripes)[0].reasons


def test_tiles_cover_the_image_and_only_the_bad_corner_is_flagged(gate):
    image = texture(3, 1, side=256)
    image[:128, :128] = np.random.default_rng(0).normal(10, 0.02, (128, 128))
    verdicts = gate.judge(image)
    covered = np.zeros(image.shape, int)
    for v in verdicts:
        covered[v.slices] += 1
    assert covered.min() == 1
    assert [v.flagged for v in verdicts] == [True, False, False, False]
    assert flagged_share(verdicts) == 0.25


def test_last_tiles_are_moved_inwards(gate):
    verdicts = gate.judge(texture(4, 1, side=136))
    assert {(v.y_px, v.x_px) for v in verdicts} == {(0, 0), (0, 8), (8, 0), (8, 8)}


def test_neither_unit_nor_offset_changes_the_verdict(gate):
    image = texture(5, 2)
    # The noise is measured in float32.
    np.testing.assert_allclose(features_of(image * 1000 + 500), features_of(image), atol=1e-3)
    assert gate.judge(image * 1000 + 500) == gate.judge(image)


def test_colours_are_judged_together(gate):
    image = texture(6, 2)
    assert gate.judge(np.stack([image] * 3)) == gate.judge(image)


def test_small_images_get_the_plain_checks_alone(gate):
    assert gate.judge(np.zeros((1, 1)))[0].reasons == ("saturated",)
    assert gate.judge(np.random.default_rng(0).normal(size=(17, 40)))[0].reasons == ()


def test_gate_survives_json(gate):
    assert RangeGate.model_validate_json(gate.model_dump_json()) == gate


def test_products_are_appended_once():
    expanded = expand(np.arange(1.0, 3.0))
    np.testing.assert_array_equal(expanded, [1, 2, 1, 2, 4, 1])
    assert features_of(texture(0, 1)).shape == (len(FEATURES),)


def test_too_few_tiles_are_refused():
    with pytest.raises(InputError, match="at least"):
        fit_gate(np.zeros((5, len(FEATURES))), np.ones((5, len(FEATURES))), largest_blur_px=4)


def test_the_shipped_gate_reaches_ten_micrometres_at_aperture_three_quarters():
    shipped = RangeGate.shipped()
    assert shipped.largest_blur_px == pytest.approx(35, abs=1)
    rng = np.random.default_rng(0)
    assert shipped.judge(rng.poisson(100, (256, 256)))[0].reasons == ("no_structure",)
