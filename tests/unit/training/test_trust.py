import numpy as np
import pytest
import torch
from skimage import data

from refocus.model.calibration import LAPLACE_FACTOR_90
from refocus.model.checkpoint import ModelPackage, PackageConfig
from refocus.model.networks import NetworkConfig, build_network
from refocus.training.evaluate import evaluate
from refocus.training.methods import check_seams, network_method
from refocus.training.scenes import SceneSettings, SharpImage
from refocus.training.trust import with_calibration


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
    fitted = with_calibration(raw, images(0, 10), pixels_per_scene=500)
    assert fitted.digest != raw.digest
    assert fitted.config.calibration.specimens == 10
    report = evaluate(
        {"untrained": network_method(fitted, precision="fp32", check=False)},
        images(10, 4),
        SceneSettings(defocus_um=(0, 2, 6, 10), photons=(1000,)),
        baselines=[],
        time_methods=False,
    )
    # Its scale says nothing, so single depths are off; over all depths nine tenths are covered all the same. The
    # pictures overlap in part and are few: 5 points.
    assert np.mean(list(report.coverage().values())) == pytest.approx(0.9, abs=0.05)
    for band in report.bands:
        before, after = (report.mean("psnr_db", m, band=band) for m in ("input", "untrained"))
        # Half-precision weights are exact for the identity; normalising and back costs float32 rounding.
        assert after == pytest.approx(before, abs=1e-3)


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


def test_an_identity_has_no_seams():
    seams = check_seams(package(), side_px=320, tile_px=96)
    assert seams.invisible
    assert seams.largest_grey_levels < 0.01
