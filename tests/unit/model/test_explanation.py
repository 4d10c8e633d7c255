"""What a restoration is said to rest on is what it rests on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from blurs import out_of_focus
from refocus.errors import ModelUnfit, UnsupportedImage
from refocus.model.checkpoint import ModelPackage, PackageConfig
from refocus.model.explanation import explain, power_spectrum, zeros_of
from refocus.model.networks import NetworkConfig, build_network
from refocus.model.restore import LoadedModel, restore
from refocus.optics.ladder import PROFILES, Profile
from refocus.optics.psf import widefield_psf
from refocus.optics.settings import STANDARD_SYSTEM


@pytest.fixture(scope="module")
def discs() -> np.ndarray:
    """Discs of all sizes, float32 in [0, 1]."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:384, :384]
    image = np.zeros(y.shape, np.float32)
    for row, column, radius, level in zip(
        *rng.uniform(0, 384, (2, 60)), rng.uniform(2, 12, 60), rng.uniform(0.3, 1, 60), strict=True
    ):
        image = np.maximum(image, level * (np.hypot(y - row, x - column) < radius)).astype(np.float32)
    return image


@pytest.fixture(scope="module")
def blurred(discs: np.ndarray) -> np.ndarray:
    seen = out_of_focus(torch.from_numpy(discs), 14.0).clamp_min(0).numpy()
    return np.random.default_rng(0).poisson(1500 * seen + 20).astype(np.uint16)


@pytest.fixture(scope="module")
def fluorescence() -> LoadedModel:
    return LoadedModel(ModelPackage.bundled("fluorescence"))


def test_a_restoration_is_cut_out_unchanged_and_the_blur_that_was_taken_is_named(
    blurred: np.ndarray, fluorescence: LoadedModel
) -> None:
    found = explain(blurred, fluorescence, at=(200, 180))
    whole = restore(blurred, fluorescence.package, with_scale=True)
    np.testing.assert_array_equal(found.restored, whole.pixels[found.rows, found.columns])
    np.testing.assert_array_equal(found.given, blurred[found.rows, found.columns])
    assert found.rows.start <= 200 < found.rows.stop
    assert found.half_width.shape == found.given.shape == (256, 256)
    assert found.radius_px == pytest.approx(14.0, rel=0.06)
    assert found.predicted_radius_px == pytest.approx(14.0, rel=0.15)
    assert not found.told
    # What is taken is where the evidence is best, to within the rungs between which it was read.
    best = found.radii_px[(found.spectrum_nats - found.light_nats).argmin()]
    assert found.radius_px == pytest.approx(float(best), rel=0.07)


def test_what_undoing_the_blur_gives_without_a_network_is_nearer_to_the_truth_than_what_came(
    discs: np.ndarray, blurred: np.ndarray, fluorescence: LoadedModel
) -> None:
    found = explain(blurred, fluorescence)
    truth = 1500 * discs[found.rows, found.columns] + 20
    assert found.filtered is not None
    assert found.deconvolved is not None

    def error(image: np.ndarray) -> float:
        return float(np.square(image - truth)[32:-32, 32:-32].mean())

    assert error(found.deconvolved) < error(found.filtered) < error(found.given)


def test_noise_of_processed_images_is_named(blurred: np.ndarray, fluorescence: LoadedModel) -> None:
    assert explain(blurred, fluorescence).noise is None
    found = explain(gaussian_filter(blurred.astype(np.float32), 0.8), fluorescence)
    assert found.noise is not None
    # A Gaussian of s px leaves exp(-(2 pi s f)^2) of noise's power.
    assert found.noise.cutoff_per_px == pytest.approx(1.0 / (2.0 * np.pi * 0.8), rel=0.3)
    assert found.radius_px == pytest.approx(14.0, rel=0.1)


def test_told_optics_are_what_is_explained(blurred: np.ndarray, fluorescence: LoadedModel) -> None:
    found = explain(blurred, fluorescence, optics=STANDARD_SYSTEM)
    assert found.told
    assert found.profile == Profile(0.4, 0.75)


def test_colours_stay_colours_and_a_grey_image_grey(blurred: np.ndarray) -> None:
    sections = LoadedModel(ModelPackage.bundled("brightfield"))
    lamp = np.uint16(2 * blurred.max())
    grey = explain(lamp - blurred, sections)
    colour = explain(np.repeat((lamp - blurred)[..., None], 3, -1), sections)
    assert grey.filtered is not None
    assert colour.filtered is not None
    assert grey.filtered.shape == (256, 256)
    np.testing.assert_allclose(colour.filtered, np.repeat(grey.filtered[..., None], 3, -1), rtol=1e-5)
    assert grey.filtered.mean() == pytest.approx(grey.given.mean(), rel=0.02)


@pytest.mark.parametrize("radius_px", [8.0, 14.0, 28.0])
def test_the_first_zero_is_that_of_a_disc_and_of_the_wave_optical_psf(radius_px: float) -> None:
    # J1(2 pi r f) is first 0 at 0.6098 / r. Through NA 0.4 steep rays, which carry less light, shift it by a twelfth
    # (tangent over sine), and diffraction by some more, the less the wider the blur.
    low = zeros_of(radius_px, PROFILES.index(Profile(0.4, 0.4)))
    assert 1.0 < low[0] * radius_px / 0.6098 < 1.09 + 1.0 / radius_px
    assert (np.diff(low) > 0).all()
    size = 512
    psf = widefield_psf(STANDARD_SYSTEM, torch.tensor([STANDARD_SYSTEM.defocus_um_for(radius_px)]), size_px=size)[0]
    transfer = torch.fft.rfft2(torch.fft.ifftshift(psf)).real[0]
    crossing = int((transfer[1:] * transfer[:-1] < 0).nonzero()[0]) + 0.5
    usual = zeros_of(radius_px, PROFILES.index(Profile(0.4, 0.75)))
    # Frequencies of the transform lie 1/512 apart; sampling 0.4 stands for 0.46.
    assert usual[0] == pytest.approx(crossing / size, abs=1.0 / size, rel=0.03)


def test_a_wave_has_its_power_at_its_own_frequency() -> None:
    x = np.arange(128)
    wave = np.tile(np.cos(2 * np.pi * 0.2 * x), (128, 1)).astype(np.float32)
    cycles, power = power_spectrum(5.0 + wave)
    assert cycles[power.argmax()] == pytest.approx(0.2, abs=1 / 128)
    # A level is no structure.
    assert power_spectrum(np.full((64, 64), 7.0, np.float32))[1].max() < 1e-3


@pytest.mark.parametrize(
    ("shape", "at", "says"),
    [
        ((64, 64, 2), None, "expected one plane"),
        ((4, 64, 64), None, "expected one plane"),
        ((64, 64), (64, 0), "lie outside"),
    ],
)
def test_what_is_no_plane_or_no_place_is_refused(
    shape: tuple[int, ...], at: tuple[int, int] | None, says: str, fluorescence: LoadedModel
) -> None:
    with pytest.raises(UnsupportedImage, match=says):
        explain(np.zeros(shape, np.uint8), fluorescence, at=at)


def test_a_network_that_estimates_no_blur_has_nothing_to_explain(blurred: np.ndarray) -> None:
    shape = NetworkConfig(widths=(4, 8), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1)
    config = PackageConfig(name="plain", modality="fluorescence", network=shape, largest_blur_px=35.0)
    with pytest.raises(ModelUnfit, match="nothing to explain"):
        explain(blurred, LoadedModel(ModelPackage.of(build_network(shape), config)))
