"""restore(): every shape and type, units kept, nothing invented, seams unseen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.signal import fftconvolve

from pretended import asked_of_accelerator, pretended_accelerator
from refocus.errors import ConfigurationError, ModelUnfit, UnsupportedImage
from refocus.model.checkpoint import ModelPackage, PackageConfig, bundled_names
from refocus.model.inverse_filters import GAIN
from refocus.model.networks import NetworkConfig, build_network
from refocus.model.normalisation import Normalisation
from refocus.model.restore import LoadedModel, restore
from refocus.optics.psf import widefield_psf
from refocus.optics.settings import STANDARD_SYSTEM


def _package(channels: int = 1, *, stirred: float = 0.0) -> ModelPackage:
    network = NetworkConfig(
        channels=channels,  # type: ignore[arg-type]
        widths=(8, 12),
        encoder_blocks=(1,),
        decoder_blocks=(1,),
        middle_blocks=1,
        noise_levels=((2e-3, 40.0),),
    )
    torch.manual_seed(0)
    built = build_network(network)
    if stirred:
        with torch.no_grad():
            built.trunk.heads.pixels.weight.add_(stirred * torch.randn_like(built.trunk.heads.pixels.weight))
    config = PackageConfig(name="t", modality="fluorescence", network=network, largest_blur_px=9.0, halo_px=112)
    return ModelPackage.of(built, config, dtype=torch.float32)


IDENTITY, COLOUR = _package(), _package(3)
CHANGING = _package(stirred=0.02)


def _image(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    return (np.random.default_rng(0).random(shape) * 200 + 20).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "int64", "float16", "float32", "float64"])
def test_the_type_and_the_units_are_kept(dtype: str) -> None:
    image = _image((40, 50), dtype)
    result = restore(image, IDENTITY, precision="fp32")
    assert result.pixels.dtype == image.dtype
    # The untrained network changes nothing; float16 has 11 bits.
    np.testing.assert_allclose(result.pixels.astype(float), image.astype(float), rtol=1e-3, atol=1e-3)


def test_a_network_for_absorbing_specimens_sees_the_complement() -> None:
    config = CHANGING.config.model_copy(update={"modality": "brightfield", "normalisation": "percentiles-99-0.2"})
    absorbing = ModelPackage(config, CHANGING.weights, {})
    image = _image((60, 70), "float32") - np.float32(120.0)
    shining, dimming = restore(-image, CHANGING, precision="fp32"), restore(image, absorbing, precision="fp32")
    assert np.abs(dimming.pixels - image).max() > 1.0
    np.testing.assert_allclose(dimming.pixels, -shining.pixels, atol=1e-3)


def test_32_bit_integers_beyond_what_float32_holds_survive() -> None:
    image = np.uint32(4_000_000_000) + _image((20, 20), "uint32")
    assert np.array_equal(restore(image, IDENTITY, precision="fp32").pixels, image)


@pytest.mark.parametrize(
    "shape", [(1, 1), (17, 17), (1, 30), (30, 1), (3, 20, 22), (2, 3, 20, 22), (20, 22, 3), (2, 20, 22, 3)]
)
@pytest.mark.parametrize("package", [IDENTITY, COLOUR], ids=["grey", "colour"])
def test_every_shape_comes_back(shape: tuple[int, ...], package: ModelPackage) -> None:
    image = _image(shape)
    result = restore(image, package, with_scale=True, precision="fp32")
    np.testing.assert_allclose(result.pixels.astype(int), image.astype(int), atol=1)
    assert result.scale is not None
    assert result.scale.shape == shape
    assert result.digest == package.digest
    assert len(result.normalisations) == len(result.blur_radius_px)


def test_four_fluorescence_channels_are_four_images() -> None:
    image = _image((4, 20, 22))
    image[2] += 1000
    together = restore(image, CHANGING, axes="CYX", precision="fp32")
    alone = restore(image[2], CHANGING, precision="fp32")
    assert np.array_equal(together.pixels[2], alone.pixels)


def test_a_constant_image_is_left_alone() -> None:
    image = np.full((30, 30), 1234, np.uint16)
    assert np.array_equal(restore(image, CHANGING).pixels, image)


def test_results_are_clipped_to_the_type_and_not_wrapped() -> None:
    image = _image((64, 64), "uint8")
    image[::2] = 255
    image[1::2] = 0
    pixels = restore(image, _package(stirred=0.5), precision="fp32").pixels
    assert pixels.min() == 0
    assert pixels.max() == 255


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_total_of_each_plane_is_kept(dtype: str) -> None:
    image = _image((2, 130, 150), dtype)
    pixels = restore(image, CHANGING, axes="ZYX", precision="fp32").pixels
    assert not np.array_equal(pixels, image)
    # What is clipped at zero is not made up for again.
    np.testing.assert_allclose(pixels.sum((1, 2), dtype=float), image.sum((1, 2), dtype=float), rtol=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_with_a_count(bad: float) -> None:
    image = _image((20, 20), "float32")
    image[3, 4] = bad
    with pytest.raises(UnsupportedImage, match="1 of 400 pixels"):
        restore(image, IDENTITY)


@pytest.mark.parametrize(
    ("image", "axes", "error"),
    [
        (_image((20, 20, 4)), None, ModelUnfit),
        (_image((20, 20, 2)), "YXS", ModelUnfit),
        (np.zeros(5), None, UnsupportedImage),
        (np.zeros((0, 4)), None, UnsupportedImage),
        (np.zeros((4, 4), bool), None, UnsupportedImage),
        (np.zeros((4, 4), complex), None, UnsupportedImage),
        (_image((5, 20, 20)), "YX", UnsupportedImage),
        (_image((20, 20)), "XY", UnsupportedImage),
        (_image((20, 20)), "QX", UnsupportedImage),
    ],
)
def test_what_is_no_image_is_refused(image: np.ndarray, axes: str | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        restore(image, IDENTITY, axes=axes)


def test_settings_that_would_show_seams_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="below 64"):
        restore(_image((20, 20)), IDENTITY, halo_px=10)
    with pytest.raises(ConfigurationError, match="precision"):
        restore(_image((20, 20)), IDENTITY, precision="fp8")  # type: ignore[arg-type]


def test_tiled_and_whole_agree_below_a_grey_level() -> None:
    image = _image((300, 420), "uint8").astype(np.float32)
    whole = restore(image, CHANGING, tile_px=1024, precision="fp32").pixels
    tiled = restore(image, CHANGING, tile_px=128, precision="fp32").pixels
    assert not np.allclose(whole, image, atol=1)
    span = float(whole.max() - whole.min())
    assert np.abs(whole - tiled).max() < span / 255


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_weights_show_no_seam_in_half_precision(name: str) -> None:
    package = ModelPackage.bundled(name)
    rng = np.random.default_rng(2)
    stain = ndimage.gaussian_filter((rng.random((420, 420)) > 0.998).astype(np.float64), 3.0)
    stain /= stain.max()
    coloured = package.config.channels == 3
    light = np.stack([np.exp(-strength * stain) for strength in (0.5, 1.5, 1.0)], -1) if coloured else stain[..., None]
    psf = widefield_psf(STANDARD_SYSTEM, torch.tensor([4.0]), size_px=161)[0].numpy()
    around = np.pad(light, ((80, 80), (80, 80), (0, 0)), mode="reflect")
    blurred = fftconvolve(around, psf[..., None], mode="valid", axes=(0, 1)).clip(0)
    image = rng.poisson(1500 * blurred / blurred.max()).astype(np.float32).squeeze()
    whole, tiled = (restore(image, package, precision="bf16", tile_px=tile_px).pixels for tile_px in (1024, 160))
    assert np.abs(whole - image).max() > 0.2 * np.ptp(image)
    assert np.abs(whole - tiled).max() < np.ptp(whole) / 255


def test_a_given_normalisation_is_used_and_reported() -> None:
    chosen = Normalisation(10.0, 50.0)
    result = restore(_image((3, 20, 20)), CHANGING, axes="ZYX", normalisation=chosen)
    assert result.normalisations == (chosen, chosen, chosen)


def test_results_can_be_written_into_a_given_array() -> None:
    image = _image((20, 30))
    out = np.zeros_like(image)
    assert restore(image, CHANGING, out=out).pixels is out
    with pytest.raises(ConfigurationError, match="like the image"):
        restore(image, CHANGING, out=np.zeros((20, 30), np.uint8))


def test_progress_counts_tiles_over_all_planes() -> None:
    told: list[tuple[int, int]] = []
    LoadedModel(IDENTITY, tile_px=64).restore(_image((2, 130, 64)), axes="ZYX", progress=lambda *a: told.append(a))
    assert told[-1] == (4, 4)
    assert told == sorted(told)


def test_tiles_of_a_widely_blurred_image_agree() -> None:
    network = NetworkConfig(
        widths=(8, 12), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1, deconvolution=True
    )
    built = build_network(network)
    with torch.no_grad():
        # All of what the last stage of the deconvolution would change, and nothing else.
        built.trunk.heads.pixels.bias[-1] = 1.0 / GAIN
    package = ModelPackage.of(
        built, PackageConfig(name="t", modality="fluorescence", network=network, largest_blur_px=35.0, halo_px=64)
    )
    rng = np.random.default_rng(0)
    psf = widefield_psf(STANDARD_SYSTEM, torch.tensor([6.0]), size_px=81)[0].numpy()
    spots = ndimage.uniform_filter((rng.random((620, 620)) > 0.9985).astype(np.float64), 15)
    image = rng.poisson(20 + 2e5 * fftconvolve(spots, psf, mode="same").clip(0)).astype(np.uint16)
    whole, tiled, narrow = (
        restore(image, package, precision="fp32", tile_px=tile_px, halo_px=halo_px).pixels.astype(np.float64)
        for tile_px, halo_px in ((1024, None), (128, None), (128, 64))
    )
    grey_level = np.ptp(whole) / 255.0
    assert np.abs(whole - image).max() > 20 * grey_level
    assert np.abs(whole - tiled).max() < 0.5 * grey_level
    assert np.abs(whole - narrow).max() > grey_level


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float16", "float32"])
@pytest.mark.parametrize("package", [CHANGING, COLOUR], ids=["grey", "colour"])
def test_a_plane_held_on_its_device_is_restored_as_one_that_is_read(
    dtype: str, package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = _image((150, 170), dtype)
    read = restore(image, package, precision="fp32", tile_px=96, with_scale=True)
    # What a CUDA device would hold.
    held = lambda device, plane: torch.from_numpy(plane.astype(np.float32))  # noqa: E731
    monkeypatch.setattr("refocus.model.restore.held_on", held)
    there = restore(image, package, precision="fp32", tile_px=96, with_scale=True)
    # The same sums in another order, before values are rounded to a type.
    np.testing.assert_allclose(there.pixels.astype(float), read.pixels.astype(float), rtol=1e-6, atol=1e-4)
    np.testing.assert_array_equal(there.scale, read.scale)
    np.testing.assert_array_equal(there.blur_radius_px, read.blur_radius_px)


def test_tiles_are_as_large_as_a_processor_takes_unless_told() -> None:
    by_default, told = LoadedModel(IDENTITY, device="cpu"), LoadedModel(IDENTITY, device="cpu", tile_px=512)
    assert (by_default.tile_px, by_default.pixels_per_batch) == (1024, 2_000_000)
    assert (told.tile_px, told.pixels_per_batch) == (512, 2_000_000)


@pytest.mark.parametrize("package", [CHANGING, COLOUR], ids=["grey", "colour"])
def test_an_accelerator_is_sent_a_plane_once_and_waited_for_rarely(package: ModelPackage) -> None:
    image = _image((300, 420))
    plain = restore(image, package, device="cpu", precision="fp32", tile_px=1024)
    with pretended_accelerator() as device:
        model = LoadedModel(package, device=device, precision="fp32")
        with asked_of_accelerator() as asked:
            there = model.restore(image)
    np.testing.assert_allclose(there.pixels.astype(int), plain.pixels.astype(int), atol=1)
    assert asked.waits <= 25
