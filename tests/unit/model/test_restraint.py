import numpy as np
import pytest
import torch
from pydantic import ValidationError

from refocus.errors import InputError
from refocus.model.checkpoint import ModelPackage, PackageConfig
from refocus.model.networks import NetworkConfig, Prediction, build_network
from refocus.model.restore import LoadedModel
from refocus.model.restraint import ChangeSample, Restraint, fit_restraint


def sample(specimen, seed, *, grain=0.0, noise=1.0, blur=0.0):
    """A change that takes all noise away, and grain of the specimen with it."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(0, 5, (64, 64))
    truth = smooth + rng.normal(0, grain, (64, 64))
    return ChangeSample(specimen, truth + rng.normal(0, noise, (64, 64)), smooth, truth, blur)


def test_what_is_right_is_applied_whole():
    found = fit_restraint(sample(f"s{i}", i) for i in range(10))
    assert found.share == (1.0,)
    assert found.specimens == 10


def test_where_grain_is_taken_for_noise_the_best_share_is_the_noises_part_of_both():
    # Removing a share w leaves (1 - w)^2 noise^2 + w^2 grain^2, least at noise^2 / (noise^2 + grain^2).
    found = fit_restraint(sample(f"s{i}", i, grain=2.0) for i in range(10))
    assert found.share[0] == pytest.approx(0.2, abs=0.051)


def test_the_smallest_share_that_specimens_cannot_tell_from_the_best_is_taken():
    grains = (0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 1.0, 2.0)
    gains = np.stack([sample(f"s{i}", i, grain=grain).gains_db() for i, grain in enumerate(grains)])
    best = int(gains.mean(0).argmax())
    found = round(fit_restraint(sample(f"s{i}", i, grain=g) for i, g in enumerate(grains)).share[0] / 0.05) - 1
    assert found < best
    for share, told_apart in ((found, False), (found - 1, True)):
        behind = gains[:, best] - gains[:, share]
        assert (behind.mean() > behind.std(ddof=1) / np.sqrt(len(behind))) == told_apart


def test_each_band_of_predicted_blur_has_a_share_of_its_own():
    samples = [
        sample(f"s{i}", 100 * i + blur, grain=2.0 if blur < 5 else 0.0, blur=blur) for i in range(8) for blur in (0, 20)
    ]
    found = fit_restraint(samples, bands=2)
    assert found.blur_radius_px == (0.0, 20.0)
    near, far = found.share
    assert near < 0.3
    assert far == 1.0


def test_too_few_specimens_are_refused():
    with pytest.raises(InputError, match="4 specimens"):
        fit_restraint(sample(f"s{i}", i) for i in range(4))


@pytest.mark.parametrize(
    "fields",
    [
        {"blur_radius_px": (0.0, 1.0), "share": (1.0,)},
        {"blur_radius_px": (1.0, 1.0), "share": (1.0, 1.0)},
        {"share": (1.5,)},
        {"share": (0.0,)},
    ],
)
def test_shares_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValidationError):
        Restraint(**fields)


def test_the_image_is_drawn_back_by_the_blur_predicted_at_each_place():
    restraint = Restraint(blur_radius_px=(0.0, 10.0), share=(0.25, 1.0), specimens=5)
    given, image = torch.zeros(1, 3, 40, 56), torch.ones(1, 1, 40, 56)
    # Strides of 16 px: the map covers 48 x 64 px.
    radius = torch.zeros(1, 1, 3, 4)
    radius[..., 2:] = 10.0
    found = restraint.applied(Prediction(image, image, radius), given).image
    assert found.shape == image.shape
    torch.testing.assert_close(found[..., :20], torch.full((1, 1, 40, 20), 0.25))
    torch.testing.assert_close(found[..., 44:], torch.ones(1, 1, 40, 12))
    assert (found.diff(dim=-1) >= -1e-6).all()
    free = Prediction(image, image, radius)
    assert Restraint().applied(free, given) is free


def test_a_restrained_package_restores_part_of_the_way_in_tiles_as_in_one():
    torch.manual_seed(0)
    shape = NetworkConfig(widths=(8, 16), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1)
    network = build_network(shape)
    with torch.no_grad():
        network.trunk.heads.pixels.weight.normal_(0, 0.05)
    config = PackageConfig(name="any", modality="fluorescence", network=shape, largest_blur_px=35)
    free = ModelPackage.of(network, config)
    half = ModelPackage.of(network, config.model_copy(update={"restraint": Restraint(share=(0.5,), specimens=5)}))
    assert free.digest != half.digest
    image = np.random.default_rng(0).normal(100, 10, (300, 300)).astype(np.float32)
    whole, partly, tiled = (
        LoadedModel(package, precision="fp32", tile_px=side).restore(image).pixels
        for package, side in ((free, 512), (half, 512), (half, 96))
    )
    # The balance of light scales both by factors of their own, close to 1.
    change = (partly - image).ravel() @ (whole - image).ravel() / np.square(whole - image).sum()
    assert change == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(partly, tiled, atol=2e-3)


def test_a_field_at_its_default_is_no_part_of_the_name():
    shape = NetworkConfig(widths=(8, 16), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1)
    config = PackageConfig(name="any", modality="fluorescence", network=shape, largest_blur_px=35)
    torch.manual_seed(0)
    network = build_network(shape)
    said = ModelPackage.of(network, config.model_copy(update={"restraint": Restraint()}))
    assert said.digest == ModelPackage.of(network, config).digest
