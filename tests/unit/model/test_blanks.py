"""Padding, cut-outs and scale bars are told from specimens, mislead no restoration, and come back as they were."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage

from blurs import out_of_focus
from refocus.model.abstain import RangeGate
from refocus.model.blanks import find_blanks, flat, spikes
from refocus.model.blur_estimate import estimate_blur
from refocus.model.checkpoint import ModelPackage
from refocus.model.consistency import check_consistency
from refocus.model.explanation import explain
from refocus.model.restore import LoadedModel
from refocus.model.specimen import Specimen, continued

RADIUS_PX = 14.0
SIDE = 384


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Discs of all sizes on a ground, float [Y, X], 300 to 3000."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:SIDE, :SIDE]
    image = np.full((SIDE, SIDE), 300.0)
    for _ in range(60):
        (cy, cx), radius = rng.uniform(0, SIDE, 2), rng.uniform(3, 22)
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.uniform(800, 3000)
    return ndimage.gaussian_filter(image, 0.8)


@pytest.fixture(scope="module")
def seen(truth: np.ndarray) -> np.ndarray:
    """The same out of focus, with noise, uint16."""
    wide = torch.from_numpy(np.pad(truth, 64, mode="reflect")).float()
    blurred = out_of_focus(wide, RADIUS_PX).numpy()[64:-64, 64:-64]
    return np.random.default_rng(0).poisson(blurred.clip(min=0)).astype(np.uint16)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return LoadedModel(ModelPackage.bundled("fluorescence"), device="cpu")


def _framed(image: np.ndarray) -> np.ndarray:
    framed = image.copy()
    framed[:50] = framed[:, -37:] = 0
    return framed


def _with_scale_bar(image: np.ndarray) -> np.ndarray:
    barred = image.copy()
    barred[-30:-22, -140:-20] = 65535
    return barred


def _round(image: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    return np.where(np.hypot(y, x) < SIDE / 2, image, 0).astype(image.dtype)


def _turned(image: np.ndarray, mode: str = "constant") -> np.ndarray:
    return ndimage.rotate(image.astype(np.float32), 17.0, reshape=False, order=1, mode=mode).astype(image.dtype)


def _dead_column(image: np.ndarray) -> np.ndarray:
    dead = image.copy()
    dead[:, 200] = 0
    return dead


Blanking = Callable[[np.ndarray], np.ndarray]
BLANKED = [(_framed, 0), (_with_scale_bar, 65535), (_round, 0), (_turned, 0), (_dead_column, 0)]


@pytest.mark.parametrize(("blanked", "level"), BLANKED)
def test_what_shows_no_specimen_is_found(blanked: Blanking, level: int, seen: np.ndarray) -> None:
    found = find_blanks(blanked(seen)[None])
    assert found.levels.tolist() == [[level]]
    assert found.spikes == 0


def test_images_without_blanks_have_none(truth: np.ndarray, seen: np.ndarray) -> None:
    clipped = np.maximum(seen.astype(int) - 700, 0).astype(np.uint16)
    assert (clipped == 0).mean() > 0.1
    saturated = np.minimum(seen, np.quantile(seen, 0.95)).astype(np.uint16)
    dim = np.round(seen / seen.max() * 40).astype(np.uint8)
    noiseless = np.round(ndimage.gaussian_filter(truth, 5.0) / 3000 * 255).astype(np.uint8)
    constant = np.full((64, 64), 7, np.uint8)
    for image in (seen, truth, clipped, saturated, dim, noiseless, constant, seen[:1], seen[:2, :2]):
        assert not find_blanks(image[None])


def test_a_plane_without_blanks_reads_as_itself(seen: np.ndarray) -> None:
    specimen = Specimen.of(seen[None], stride_px=16)
    assert not specimen.blanks
    assert specimen.window == (slice(0, SIDE), slice(0, SIDE))
    assert np.shares_memory(specimen[:, 10:50, 20:30], seen)
    np.testing.assert_array_equal(specimen[:, 10:50, 20:30], seen[None, 10:50, 20:30])


def test_blank_rims_are_cut_off_and_the_rest_is_continued(seen: np.ndarray) -> None:
    specimen = Specimen.of(_with_scale_bar(_framed(seen))[None], stride_px=16)
    assert specimen.window == (slice(48, SIDE), slice(0, SIDE - 37))
    assert specimen.shape == (1, SIDE - 48, SIDE - 37)
    read = specimen[:, :, :]
    assert seen.min() <= read.min()
    assert read.max() <= seen.max()
    # Windows agree with the whole, but for how far they look to fill what is blank.
    np.testing.assert_array_equal(read[:, 100:160, 40:90], specimen[:, 100:160, 40:90])
    known = np.ones((SIDE, SIDE), bool)
    known[:52] = known[:, -39:] = known[-32:-20, -142:-18] = False
    window = specimen.window
    np.testing.assert_array_equal(read[0][known[window]], seen[window][known[window]])


def test_letters_beside_a_scale_bar_are_blank_though_they_are_thin(seen: np.ndarray) -> None:
    lettered = _with_scale_bar(seen)
    strokes = np.arange(60)
    lettered[-60:-36, 300] = lettered[-60 + strokes % 24, 310 + strokes // 3] = 65535
    found = find_blanks(lettered[None])
    assert found.levels.tolist() == [[65535]]
    unknown = found.over(lettered[None])
    assert unknown[lettered == 65535].all()
    assert unknown[-50, 302]
    assert not unknown[-50, 304]


def test_a_level_below_the_brightest_is_blank_where_it_is_flat(seen: np.ndarray) -> None:
    framed = _framed(seen)
    framed[200, 100] = 0
    assert not find_blanks(framed[None]).over(framed[None])[200, 100]


def test_colours_are_blank_together() -> None:
    rng = np.random.default_rng(0)
    image = rng.poisson(200, (3, 96, 96)).astype(np.uint8)
    image[0, :30] = 255
    assert not find_blanks(image)
    image[1:, :30] = 255
    assert find_blanks(image).levels.tolist() == [[255, 255, 255]]


def test_continuing_keeps_what_is_known_and_invents_no_edge() -> None:
    ramp = np.add.outer(np.arange(64.0), np.arange(64.0))[None]
    unknown = np.zeros((64, 64), bool)
    unknown[20:40, 10:50] = True
    filled = continued(ramp, unknown)
    np.testing.assert_array_equal(filled[0][~unknown], ramp[0][~unknown])
    assert np.abs(filled - ramp).max() < 20.0
    assert np.abs(np.diff(filled[0], axis=0)).max() < 8.0


def test_runs_and_squares_are_flat() -> None:
    rng = np.random.default_rng(0)
    image = rng.permutation(40 * 60).reshape(1, 40, 60)
    image[0, 5, 3:19] = -1
    image[0, 20:23, 30:33] = -2
    image[0, 30:32, 30:33] = -3
    image[0, 10:25, 50] = -4
    expected = np.isin(image[0], (-1, -2))
    np.testing.assert_array_equal(flat(image), expected)


@pytest.mark.parametrize(("blanked", "level"), BLANKED)
def test_blanks_cost_a_restoration_little(
    blanked: Blanking, level: int, truth: np.ndarray, seen: np.ndarray, model: LoadedModel
) -> None:
    given, wanted = blanked(seen), blanked(truth)
    found = model.restore(given, with_scale=True)
    blank = given == level
    assert [plane.levels.tolist() for plane in found.blanks] == [[[level]]]
    np.testing.assert_array_equal(found.pixels[blank], given[blank])
    assert found.scale is not None
    assert not found.scale[ndimage.binary_erosion(blank, iterations=3)].any()
    assert found.scale[~ndimage.binary_dilation(blank, iterations=5)].min() > 0
    inside = ~ndimage.binary_dilation(blank, iterations=6)

    def gain(image: np.ndarray, restored: np.ndarray, sharp: np.ndarray) -> float:
        before, after = (np.mean((part.astype(float) - sharp)[inside] ** 2) for part in (image, restored))
        return float(10 * np.log10(before / after))

    plain, sharp = (_turned(part, "mirror") if blanked is _turned else part for part in (seen, truth))
    without = gain(plain, model.restore(plain).pixels, sharp)
    assert without > 3.0
    assert gain(given, found.pixels, wanted) > without - 1.0
    assert found.median_blur_radius_px == pytest.approx(RADIUS_PX, rel=0.15)


def _with_hot_pixels(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """And where they are, far from each other."""
    hot = np.zeros(image.shape, bool)
    hot[5::23, 7::19] = True
    spoilt = image.copy()
    spoilt[hot] = 60000
    return spoilt, hot


def test_hot_and_dead_pixels_are_found_and_left(truth: np.ndarray, seen: np.ndarray, model: LoadedModel) -> None:
    given, hot = _with_hot_pixels(seen)
    found = model.restore(given)
    assert found.blanks[0].spikes == np.count_nonzero(hot)
    assert len(found.blanks[0].levels) == 0
    np.testing.assert_array_equal(found.pixels[hot], given[hot])
    errors = [float(np.mean((pixels - truth)[~hot] ** 2)) for pixels in (found.pixels, model.restore(seen).pixels)]
    assert errors[0] < 1.2 * errors[1]


def test_points_of_light_in_focus_are_no_spikes() -> None:
    y, x = np.mgrid[:64, :64]
    # As narrow as light gets on pixels that sample it coarsely: 1.4 px at half maximum.
    points = sum(np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.72) for cy, cx in ((10, 10), (20.5, 30), (40.5, 50.5)))
    image = np.random.default_rng(0).poisson(100 + 4000 * points)
    assert not spikes(image[None], 50.0).any()


def test_dead_pixels_stand_out_like_hot_ones() -> None:
    image = np.random.default_rng(0).poisson(3000, (1, 64, 64)).astype(np.uint16)
    image[0, 9::13, 8::12] = 0
    np.testing.assert_array_equal(spikes(image, 100.0), image[0] == 0)


def test_few_spikes_are_noise(seen: np.ndarray) -> None:
    given = seen.copy()
    given[100, 100] = 60000
    assert not find_blanks(given[None])


def test_tiles_agree_beside_blanks(seen: np.ndarray, model: LoadedModel) -> None:
    given = _with_scale_bar(_framed(seen))
    tiled = LoadedModel(model.package, device="cpu", precision="fp32", tile_px=128)
    whole = LoadedModel(model.package, device="cpu", precision="fp32").restore(given).pixels.astype(float)
    difference = np.abs(tiled.restore(given).pixels.astype(float) - whole)
    assert difference.max() < np.ptp(seen) / 255


def test_blur_is_read_where_the_specimen_is(seen: np.ndarray) -> None:
    framed = Specimen.of(_framed(seen)[None], stride_px=16)
    assert float(estimate_blur(framed).radius_px.mean()) == pytest.approx(RADIUS_PX, rel=0.15)
    moved = estimate_blur(framed).moved(framed.window)
    assert moved.centres_y_px.min() > framed.window[0].start


def test_explanations_lie_in_the_plane(seen: np.ndarray, model: LoadedModel) -> None:
    given = _framed(seen)
    found = explain(given, model, at=(100, 100))
    np.testing.assert_array_equal(found.given, given[found.rows, found.columns])
    assert found.radius_px == pytest.approx(RADIUS_PX, rel=0.15)


def test_the_gate_judges_the_specimen(seen: np.ndarray) -> None:
    gate = RangeGate.shipped()
    padded = np.pad(seen, ((0, 512), (0, 0)))
    assert not any(verdict.flagged for verdict in gate.judge(_with_scale_bar(seen)))
    reasons = {verdict.y_px: verdict.reasons for verdict in gate.judge(padded)}
    assert reasons[0] == ()
    assert reasons[max(reasons)] == ("no_structure",)


def test_blurring_again_explains_what_lies_beside_blanks(truth: np.ndarray, seen: np.ndarray) -> None:
    plain = check_consistency(seen, truth, RADIUS_PX)
    framed = check_consistency(_framed(seen), _framed(truth), RADIUS_PX)
    assert framed.residual < plain.residual + 0.05
