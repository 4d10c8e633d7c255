import numpy as np
import pytest
from pydantic import ValidationError

from refocus.errors import InputError
from refocus.model.calibration import (
    LAPLACE_FACTOR_90,
    Calibration,
    CalibrationSample,
    coverage,
    enlarged,
    fit_calibration,
)


def sample(specimen, seed, *, wrong_by=lambda blur: 1.0, pixels=4000):
    """Laplace errors whose true scale is the predicted one times `wrong_by`."""
    rng = np.random.default_rng(seed)
    blur = rng.uniform(0, 35, pixels)
    scale = rng.uniform(0.5, 2.0, pixels)
    return CalibrationSample(specimen, np.abs(rng.laplace(0, scale * wrong_by(blur))), scale, blur)


def test_an_honest_scale_is_taken_at_its_word():
    found = fit_calibration(sample(f"s{i}", i) for i in range(20))
    # A band of 10 000 pixels knows its 90% quantile to 0.03 / (0.1 ln 10) = 1.3%: 4 of them.
    np.testing.assert_allclose(found.factor, LAPLACE_FACTOR_90, rtol=0.055)
    assert Calibration().factor == (LAPLACE_FACTOR_90,)
    assert found.fitted
    assert not Calibration().fitted


def test_intervals_cover_nine_tenths_in_every_band_of_new_specimens():
    overconfident = {"wrong_by": lambda blur: 0.5 + 0.2 * blur}
    found = fit_calibration((sample(f"s{i}", i, **overconfident) for i in range(30)), bands=12)
    new = sample("new", 99, pixels=40_000, **overconfident)
    half = found.half_width(new.scale, new.blur_radius_px)
    for low in range(0, 35, 5):
        band = (new.blur_radius_px >= low) & (new.blur_radius_px < low + 5)
        # The factor is linear between band centres and constant within the outermost halves: 2 points are allowed.
        assert coverage(new.error[band], half[band]) == pytest.approx(0.9, abs=0.02)


def test_every_true_depth_is_covered_alike_although_the_predicted_one_saturates():
    def seen(specimen, seed, depth):
        # Errors grow with the true depth, the prediction ends at 28 px.
        rng = np.random.default_rng([seed, int(depth)])
        blur = np.minimum(np.maximum(depth + rng.normal(0, 2.5, 3000), 0), 28.0)
        return CalibrationSample(specimen, np.abs(rng.laplace(0, 1 + 0.1 * depth, 3000)), np.ones(3000), blur, depth)

    depths = [0.0, 3.5, 7.0, 14.0, 21.0, 28.0, 35.0]
    samples = [seen(f"s{i}", i, depth) for i in range(15) for depth in depths]
    pooled = fit_calibration(CalibrationSample(s.specimen, s.error, s.scale, s.blur_radius_px) for s in samples)
    balanced = fit_calibration(samples)
    new = [seen("new", 99, depth) for depth in depths]
    off = [
        max(abs(coverage(s.error, found.half_width(s.scale, s.blur_radius_px)) - 0.9) for s in new)
        for found in (pooled, balanced)
    ]
    # 3000 pixels know a share of 0.9 to 0.0055; three of them are allowed.
    assert off[1] < 0.02
    assert off[0] > 0.025


def test_what_is_balanced_is_covered_by_half_a_point_more_than_asked_at_most():
    def seen(specimen, seed, depth):
        rng = np.random.default_rng([seed, int(depth)])
        error = np.abs(rng.laplace(0, 1, 2000)) * np.exp(0.5 * np.random.default_rng(seed).normal())
        return CalibrationSample(specimen, error, np.ones(2000), np.maximum(depth + rng.normal(0, 2.5, 2000), 0), depth)

    depths = [0.0, 7.0, 14.0, 21.0, 28.0, 35.0]
    samples = [seen(f"s{i}", i, depth) for i in range(12) for depth in depths]
    found = fit_calibration(samples)
    for depth in depths:
        own = [s for s in samples if s.true_blur_px == depth]
        covered = np.mean([coverage(s.error, found.half_width(s.scale, s.blur_radius_px)) for s in own])
        # A smooth step covers more than it says; one of half this width 0.1 points, of three halves 0.8.
        assert 0.9 <= covered < 0.905


def test_specimens_weigh_alike_however_many_pixels_they_have():
    rng = np.random.default_rng(0)
    few = [CalibrationSample(f"s{i}", rng.uniform(0, 1, 500), np.ones(500), np.zeros(500)) for i in range(9)]
    huge = CalibrationSample("huge", np.full(100_000, 100.0), np.ones(100_000), np.zeros(100_000))
    # The huge specimen holds a tenth of the weight, so the 85% quantile still lies among the others.
    assert fit_calibration([*few, huge], level=0.85).factor[0] < 1.0


def test_factor_is_linear_between_bands_and_constant_beyond():
    calibration = Calibration(blur_radius_px=(2, 10), factor=(2, 4), specimens=9, pixels=9)
    assert [calibration.factor_at(b) for b in (0, 2, 6, 10, 50)] == [2, 2, 3, 4, 4]
    half = calibration.half_width(np.ones((2, 3)), np.array([[0.0], [6.0]]))
    np.testing.assert_allclose(half, [[2, 2, 2], [3, 3, 3]])


def test_one_predicted_blur_makes_one_band():
    found = fit_calibration(
        CalibrationSample(f"s{i}", np.linspace(0, 1, 1001), np.ones(1001), np.full(1001, 5.0)) for i in range(6)
    )
    assert found.blur_radius_px == (5.0,)
    assert found.factor[0] == pytest.approx(0.9, abs=0.002)


def test_calibration_survives_json():
    found = fit_calibration(sample(f"s{i}", i) for i in range(6))
    assert Calibration.model_validate_json(found.model_dump_json()) == found


def test_what_cannot_promise_anything_is_refused():
    with pytest.raises(InputError, match="at least 5"):
        fit_calibration(sample(f"s{i}", i) for i in range(4))
    bad = CalibrationSample("s0", np.array([np.nan]), np.ones(1), np.zeros(1))
    with pytest.raises(InputError, match="NaN"):
        fit_calibration([bad, *(sample(f"s{i}", i) for i in range(6))])
    with pytest.raises(ValidationError, match="increasing"):
        Calibration(blur_radius_px=(2, 1), factor=(1, 1))
    with pytest.raises(ValidationError, match="one a band"):
        Calibration(blur_radius_px=(1, 2), factor=(1,))


def test_a_blur_map_is_enlarged_without_steps():
    grown = enlarged(np.array([[0.0, 8.0]]), 8, (8, 16))
    # Centres of the two squares lie at 3.5 and 11.5 px; between them one pixel is an eighth of the way.
    np.testing.assert_allclose(grown[0, 3:13], [0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8], atol=1e-6)
    assert (grown[0] == grown[7]).all()


@pytest.mark.parametrize(("axes", "maps"), [("YX", 1), ("CYX", 2), ("YXS", 1), ("YXS", 3), ("ZCYX", 6)])
def test_each_plane_is_widened_by_its_own_blur(axes, maps):
    sizes = {"Z": 3, "C": 2, "Y": 20, "X": 24, "S": 3}
    shape = tuple(sizes[a] for a in axes)
    calibration = Calibration(blur_radius_px=(0, 10), factor=(1, 11), specimens=9, pixels=9)
    blur = np.arange(maps, dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    half = calibration.half_width_of(np.ones(shape, np.float32), blur, stride_px=16, axes=axes)
    assert half.shape == shape
    together = np.moveaxis(half, (axes.index("Y"), axes.index("X")), (-2, -1)).reshape(-1, 20, 24)
    repeats = len(together) // maps
    np.testing.assert_allclose(together[:, 0, 0], np.repeat(np.arange(maps) + 1, repeats))


def test_maps_that_do_not_fit_the_planes_are_refused():
    with pytest.raises(InputError, match="do not fit"):
        Calibration().half_width_of(np.ones((3, 8, 8)), np.ones((2, 1, 1)), stride_px=8, axes="CYX")
