import numpy as np
import pytest
import torch
from skimage import data

from refocus.errors import InputError
from refocus.model import specimen
from refocus.model.abstain import RangeGate
from refocus.model.blanks import find_blanks
from refocus.model.calibration import LAPLACE_FACTOR_90
from refocus.model.checkpoint import ModelPackage, PackageConfig
from refocus.model.networks import NetworkConfig, build_network
from refocus.optics.settings import STANDARD_SYSTEM
from refocus.optics.simulate import simulate_focal_series
from refocus.training.evaluate import evaluate
from refocus.training.methods import check_seams, network_method
from refocus.training.scenes import SceneSettings, SharpImage
from refocus.training.trust import (
    OperatingPoint,
    _grainy,
    gate_for,
    operating_point,
    with_calibration,
    with_shipped_gate,
)


def package(channels=1):
    torch.manual_seed(0)
    shape = NetworkConfig(channels=channels, widths=(8, 16), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1)
    modality = "brightfield" if channels == 3 else "fluorescence"
    config = PackageConfig(name="untrained", modality=modality, network=shape, largest_blur_px=35)
    return ModelPackage.of(build_network(shape), config)


def images(start, count):
    picture = data.camera()
    return [
        SharpImage(picture[y : y + 200, x : x + 200][None], f"{y}-{x}", "fluorescence")
        for y, x in [(i % 4 * 100, i // 4 * 100) for i in range(start, start + count)]
    ]


def test_an_untrained_network_is_the_input_with_an_honest_interval_after_calibration():
    raw = package()
    assert raw.config.calibration.factor == (LAPLACE_FACTOR_90,)
    told = []
    fitted = with_calibration(raw, images(0, 10), pixels_per_scene=500, progress=lambda *counts: told.append(counts))
    assert told == [(number, len(told)) for number in range(1, len(told) + 1)]
    assert fitted.digest != raw.digest
    assert fitted.config.calibration.specimens == 10
    report = evaluate(
        {"untrained": network_method(fitted, precision="fp32", check=False)},
        images(10, 4),
        SceneSettings(defocus_um=(0, 2, 6, 10), photons=(1000,)),
        baselines=[],
        timed={},
    )
    # Its scale says nothing, so single depths are off; over all depths nine tenths are covered all the same. The
    # pictures overlap in part and are few: 5 points.
    assert np.mean(list(report.coverage().values())) == pytest.approx(0.9, abs=0.05)
    for band in report.bands:
        before, after = (report.mean("psnr_db", m, band=band) for m in ("input", "untrained"))
        # Half-precision weights are exact for the identity; normalising and back costs float32 rounding.
        assert after == pytest.approx(before, abs=1e-3)


def test_specimens_get_grain_of_their_own_and_keep_their_name():
    plain = images(0, 2)
    grainy = [_grainy(image, 0) for image in plain]
    assert [image.specimen for image in grainy] == [image.specimen for image in plain]
    factors = [np.log((a.pixels + 1e-3) / (b.pixels + 1e-3)) for a, b in zip(grainy, plain, strict=True)]
    assert all(0.015 < factor.std() < 0.33 for factor in factors)
    assert abs(np.corrcoef(factors[0].ravel(), factors[1].ravel())[0, 1]) < 0.1
    # Equal names give equal grain, on any machine and in any order.
    np.testing.assert_array_equal(_grainy(plain[1], 0).pixels, grainy[1].pixels)
    assert not np.array_equal(_grainy(plain[1], 1).pixels, grainy[1].pixels)


def test_colour_goes_through_a_colour_network():
    picture = np.moveaxis(data.astronaut()[:180, :180], -1, 0)
    found = network_method(package(channels=3), check=False)(picture.astype(np.float32))
    assert found.pixels.shape == found.half_width.shape == (3, 180, 180)
    np.testing.assert_allclose(found.pixels, picture, atol=1e-3)


def test_each_colour_goes_through_a_grey_network_by_itself():
    picture = np.moveaxis(data.astronaut()[:96, :112], -1, 0).astype(np.float32)
    found = network_method(package(), check=True)(picture)
    assert found.pixels.shape == picture.shape
    # The output is the input: no blur explains it better than none.
    assert found.residual == pytest.approx(0, abs=0.05)
    assert found.flagged_share is None


def test_a_method_judges_sections_by_their_dark_end():
    nuclei = simulate_focal_series("nuclei", planes=3, size_px=(256, 256), seed=0)[0].pixels[1].astype(np.float32)
    light = nuclei.max() - nuclei
    white = np.minimum(light, np.quantile(light, 0.5))[None]
    raw = with_shipped_gate(package())
    section = ModelPackage(raw.config.model_copy(update={"normalisation": "percentiles-99-0.2"}), raw.weights)
    flagged = [network_method(each)(white).flagged_share for each in (raw, section)]
    assert flagged == [1.0, 0.0]


def test_an_identity_has_no_seams():
    seams = check_seams(package(), side_px=320, tile_px=96)
    assert seams.invisible
    assert seams.largest_grey_levels < 0.01


def test_the_shipped_gate_flags_what_is_beyond_its_range_and_little_else():
    # Simulated nuclei: the gate was fitted on photographs of real ones.
    fields = [simulate_focal_series("nuclei", planes=1, size_px=(256, 256), seed=seed)[1] for seed in range(3)]
    unseen = [SharpImage(field.in_focus[None], f"nuclei{field.seed}", "fluorescence") for field in fields]
    point = operating_point(RangeGate.shipped(), unseen)
    assert point.as_asked
    assert set(point.flagged) == {0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.5, 1.6, 1.75, 2.0}


def test_an_operating_point_averages_on_either_side_of_the_range():
    point = OperatingPoint(STANDARD_SYSTEM, {0.0: 0.0, 1.0: 0.12, 1.5: 0.9, 2.0: 1.0})
    assert (point.in_range, point.beyond) == pytest.approx((0.06, 0.95))
    assert not point.as_asked


def ranged(largest_blur_px, gate=None):
    raw = package()
    return ModelPackage(
        raw.config.model_copy(update={"largest_blur_px": largest_blur_px, "gate": gate}), raw.weights, {"run": "a"}
    )


def test_the_shipped_gate_is_given_where_it_serves():
    shipped = RangeGate.shipped()
    older = shipped.model_copy(update={"threshold": 9.0})
    narrow = shipped.model_copy(update={"largest_blur_px": 12.0})
    for given, own, expected in (
        (38.0, None, shipped),
        (38.0, older, shipped),
        (12.0, None, None),
        (12.0, narrow, narrow),
        # Fitted for this package alone.
        (38.0, narrow, narrow),
    ):
        found = with_shipped_gate(ranged(given, own))
        assert found.config.gate == expected
        assert found.card == {"run": "a"}


def test_a_gate_needs_many_images():
    # One image gives 16 tiles in range and 8 beyond; the rule has 231 weights.
    with pytest.raises(InputError, match="expected at least 231"):
        gate_for(12.0, images(0, 1), systems=(STANDARD_SYSTEM,))


def test_blanks_are_looked_for_once_an_image(monkeypatch):
    picture = data.camera()[None, :96, :112].astype(np.float32)
    raw = package()
    judging = ModelPackage(raw.config.model_copy(update={"gate": RangeGate.shipped()}), raw.weights, {})
    looked = []

    def counting(plane, screen=None):
        looked.append(plane.shape)
        return find_blanks(plane, screen)

    monkeypatch.setattr(specimen, "find_blanks", counting)
    found = network_method(judging)(picture)
    assert None not in (found.flagged_share, found.residual)
    assert looked == [picture.shape]
