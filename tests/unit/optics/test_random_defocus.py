from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from refocus.errors import ConfigurationError, InputError
from refocus.optics.formation import sheet
from refocus.optics.random_defocus import Defocused, OpticsRange, RandomDefocus
from refocus.optics.settings import OpticalSystem
from refocus.zstack import Modality

#: One objective, no noise to speak of, nothing but blur.
CLEAN = OpticsRange(
    numerical_aperture=(0.75, 0.75),
    wavelength_um=(0.525, 0.525),
    pixel_size_um=(0.325, 0.325),
    condenser_ratio=(1.0, 1.0),
    in_focus_share=0.0,
    near_focus_share=0.0,
    plain_psf_share=0.0,
    spherical_waves=0.0,
    tilt_share=0.0,
    haze_share=0.0,
    vignetting_share=0.0,
    photons_at_peak=(1e9, 1e9),
    background_share=0.0,
    read_noise_electrons=(0.0, 0.0),
    offset=(0.0, 0.0),
    saturation_share=0.0,
    bit_depths=(16,),
)


def sharp(batch: int, channels: int, side: int, seed: int = 0) -> torch.Tensor:
    """Blobs and points on a dark ground."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, channels, side, side, generator=generator)
    points = (noise > 0.995).float() * 4
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2) ** 2 + points


def run(
    optics: OpticsRange, images: torch.Tensor, *, crop: int = 48, seed: int = 0, modality: Modality = "fluorescence"
) -> Defocused:
    blur = RandomDefocus(optics, crop_px=crop, modality=modality)
    return blur(images, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("modality", ["fluorescence", "brightfield"])
def test_in_focus_the_image_is_the_sharp_image(modality: Modality) -> None:
    still = CLEAN.model_copy(update={"in_focus_share": 1.0})
    images = sharp(4, 3, 80)
    pair = run(still, images, modality=modality)
    assert torch.equal(pair.in_focus, images[..., 16:64, 16:64])
    assert pair.blur_radius_px.eq(0).all()
    # 1e9 photons: noise of 3e-5 of the peak (about 4 here), and one 16-bit step of at most 4 peaks.
    torch.testing.assert_close(pair.image, pair.in_focus, atol=2e-3, rtol=0)


@pytest.mark.parametrize("radius", [7.0, 14.0, 30.0])
def test_far_from_focus_the_plain_psf_is_the_physics_of_formation(radius: float, objective: OpticalSystem) -> None:
    optics = CLEAN.model_copy(update={"blur_radius_px": (radius, radius), "plain_psf_share": 1.0})
    images = sharp(3, 1, 160)
    pair = run(optics, images)
    z = torch.tensor([objective.defocus_um_for(radius)])
    expected = sheet(images[:, 0], objective, z)[:, 56:104, 56:104]
    # Formation integrates over pixels, which a sharp image has already: sinc^2 at the frequencies that are left.
    difference = (pair.image[:, 0] - expected).std() / (pair.in_focus[:, 0] - expected).std()
    assert difference.item() < 0.02


def test_defocus_is_what_carries_one_image_of_a_microscope_into_another(objective: OpticalSystem) -> None:
    # A point object, imaged in focus and at 2 um by the full model; random defocus must turn the one into the other.
    scene = torch.zeros(1, 160, 160)
    generator = torch.Generator().manual_seed(5)
    scene.view(-1)[torch.randint(0, scene.numel(), (300,), generator=generator)] = 1.0
    radius = objective.blur_radius_px(2.0)
    in_focus = sheet(scene, objective, torch.tensor([0.0]))
    seen = sheet(scene, objective, torch.tensor([2.0]))[:, 56:104, 56:104]
    optics = CLEAN.model_copy(update={"blur_radius_px": (radius, radius)})
    ratio = run(optics, in_focus[:, None]).image[:, 0]
    plain = run(optics.model_copy(update={"plain_psf_share": 1.0}), in_focus[:, None]).image[:, 0]
    scale = seen.std()
    # Points alias on 0.325 um pixels, which no operation on the image undoes; blurring twice is clearly worse.
    assert ((ratio - seen).std() / scale).item() < 0.2
    assert (ratio - seen).std() < 0.8 * (plain - seen).std()


def test_light_is_kept_where_no_rim_is_near() -> None:
    images = torch.zeros(6, 1, 200, 200)
    images[..., 90:110, 90:110] = 1.0
    pair = run(CLEAN, images, crop=180)
    ratio = pair.image.sum((1, 2, 3)) / pair.in_focus.sum((1, 2, 3))
    # Tails beyond the crop, and negative lobes cut at zero.
    torch.testing.assert_close(ratio, torch.ones(6), atol=0.01, rtol=0)


def test_more_defocus_leaves_less_contrast() -> None:
    images = sharp(1, 1, 160)
    contrast = [
        run(CLEAN.model_copy(update={"blur_radius_px": (r, r)}), images).image.std().item()
        for r in (0.5, 2.0, 8.0, 30.0)
    ]
    assert contrast == sorted(contrast, reverse=True)


def test_equal_seeds_give_equal_pairs() -> None:
    images = sharp(3, 1, 96)
    first, second = (run(OpticsRange(), images, seed=4) for _ in range(2))
    assert torch.equal(first.image, second.image)
    assert not torch.equal(first.image, run(OpticsRange(), images, seed=5).image)


@pytest.mark.parametrize(("modality", "channels"), [("fluorescence", 1), ("brightfield", 3)])
def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(modality: Modality, channels: int) -> None:
    images = sharp(8, channels, 96)
    seeds = torch.arange(100, 108)
    blur = RandomDefocus(OpticsRange(tilt_share=0.5, haze_share=0.5), crop_px=48, modality=modality)
    together = blur(images, seeds=seeds)
    shuffled = torch.tensor([5, 2, 7])
    alone = blur(images[shuffled], seeds=seeds[shuffled])
    assert torch.equal(together.defocus_um[shuffled], alone.defocus_um)
    # Matrix products sum in another order: light is equal to 1e-6, and a pixel in thousands rounds the other way, by
    # one step of the coarsest converter (8 bits over four peaks).
    torch.testing.assert_close(together.in_focus[shuffled], alone.in_focus, atol=1e-5, rtol=1e-5)
    close = (together.image[shuffled] - alone.image).abs() < 1e-4
    assert close.float().mean().item() > 0.999


def test_every_draw_stays_in_its_range() -> None:
    optics = OpticsRange()
    blur = RandomDefocus(optics, crop_px=16)
    pair = blur(sharp(1, 1, 32).expand(800, 1, 32, 32).contiguous(), torch.Generator().manual_seed(0))
    assert 0.3 <= pair.numerical_aperture.min().item() <= pair.numerical_aperture.max().item() <= 0.95
    assert 0.1 <= pair.pixel_size_um.min().item() <= pair.pixel_size_um.max().item() <= 0.65
    assert 100 <= pair.photons_at_peak.min().item() <= pair.photons_at_peak.max().item() <= 20000
    assert pair.blur_radius_px.max().item() <= 35.0
    assert torch.isfinite(pair.image).all()
    assert pair.image.min().item() >= 0
    # Five standard errors of a share of 800.
    still = pair.blur_radius_px.eq(0).float().mean().item()
    assert still == pytest.approx(0.15, abs=5 * math.sqrt(0.15 * 0.85 / 800))
    sign = pair.defocus_um[pair.blur_radius_px > 0].sign().mean().item()
    assert abs(sign) < 5 / math.sqrt(680)
    tangent = torch.tan(torch.asin(pair.numerical_aperture))
    torch.testing.assert_close(
        pair.blur_radius_px, pair.defocus_um.abs() * tangent / pair.pixel_size_um, rtol=1e-4, atol=1e-5
    )


def test_examples_beyond_the_range_come_when_asked_for() -> None:
    optics = OpticsRange(in_focus_share=0.0, near_focus_share=0.0, out_of_range_share=1.0)
    pair = run(optics, sharp(50, 1, 24), crop=16)
    assert pair.blur_radius_px.min().item() > 35.0
    assert pair.blur_radius_px.max().item() <= 70.0


def test_colours_share_distance_and_differ_in_wavelength() -> None:
    grey = torch.ones(1, 3, 160, 160)
    grey[..., 70:90, 70:90] = 0.2
    optics = CLEAN.model_copy(update={"blur_radius_px": (12.0, 12.0)})
    red, green, blue = run(optics, grey, modality="brightfield").image[0]
    # One geometric disc, three diffraction patterns: the square's shadow is alike to a few percent.
    assert 0 < (red - blue).std().item() < 0.05 * green.std().item()


def test_a_condenser_narrower_than_the_objective_defines_the_blur() -> None:
    optics = CLEAN.model_copy(update={"condenser_ratio": (0.5, 0.5), "blur_radius_px": (10.0, 10.0)})
    pair = run(optics, sharp(1, 1, 160), modality="brightfield")
    used = math.tan(math.asin(0.375))
    assert pair.defocus_um.abs().item() == pytest.approx(10.0 * 0.325 / used, rel=1e-5)


def test_noise_follows_the_photons() -> None:
    flat = torch.full((1, 1, 160, 160), 2.0)
    optics = CLEAN.model_copy(update={"photons_at_peak": (400.0, 400.0), "read_noise_electrons": (3.0, 3.0)})
    pair = run(optics, flat, crop=128)
    # 400 electrons stand for 2.0: a variance of 400 + 9 electrons, five standard errors of 16384 pixels.
    electrons = pair.image * 200
    assert electrons.mean().item() == pytest.approx(400, abs=5 * math.sqrt(409 / 16384))
    assert electrons.var().item() == pytest.approx(409, rel=5 * math.sqrt(2 / 16384))


def test_processed_samples_have_the_same_light_and_noise_that_falls() -> None:
    flat = torch.full((8, 1, 160, 160), 2.0)
    noisy = CLEAN.model_copy(update={"photons_at_peak": (400.0, 400.0)})
    as_recorded = run(noisy, flat, crop=128)
    some = run(noisy.model_copy(update={"processed_share": 0.5}), flat, crop=128)
    processed = (some.image != as_recorded.image).flatten(1).any(1)
    assert 0 < processed.sum() < 8
    assert torch.equal(some.in_focus, as_recorded.in_focus)

    def power(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        spectrum = torch.fft.rfft2(image[processed] - image[processed].mean((-2, -1), keepdim=True)).abs().square()
        return spectrum[..., 1:6, 1:6].mean((1, 2, 3)), spectrum[..., 60:68, 60:].mean((1, 2, 3))

    low, high = power(some.image)
    low_recorded, high_recorded = power(as_recorded.image)
    # The lowest cutoff is 15 of 128 periods a side.
    assert (low / low_recorded > 0.8).all()
    assert (high / high_recorded < 0.3).all()


def test_offset_background_and_vignetting_are_on_image_and_target_alike() -> None:
    optics = OpticsRange(
        in_focus_share=1.0, near_focus_share=0.0, background_share=1.0, vignetting_share=1.0, haze_share=1.0,
        photons_at_peak=(1e8, 1e8), read_noise_electrons=(0, 0), bit_depths=(16,), saturation_share=0.5,
    )  # fmt: skip
    pair = run(optics, sharp(6, 1, 96))
    # 1e8 photons and 16 bits.
    torch.testing.assert_close(pair.image, pair.in_focus, atol=5e-3, rtol=0)
    assert (pair.in_focus.amin((1, 2, 3)) > 0).all()


def test_saturation_cuts_image_and_target_at_one_level() -> None:
    optics = CLEAN.model_copy(update={"saturation_share": 1.0, "saturation": (0.5, 0.5), "in_focus_share": 1.0})
    pair = run(optics, sharp(2, 1, 96))
    torch.testing.assert_close(pair.image.amax((1, 2, 3)), pair.in_focus.amax((1, 2, 3)))
    unlimited = run(optics.model_copy(update={"saturation_share": 0.0}), sharp(2, 1, 96))
    assert (pair.in_focus.amax((1, 2, 3)) < 0.6 * unlimited.in_focus.amax((1, 2, 3))).all()


def test_a_tilted_sample_is_sharper_on_one_side() -> None:
    optics = CLEAN.model_copy(update={"blur_radius_px": (5.0, 5.0), "tilt_share": 1.0, "tilt_blur_px": (5.0, 5.0)})
    grain = torch.rand(40, 1, 160, 160, generator=torch.Generator().manual_seed(0))
    image = run(optics, grain, crop=96).image[:, 0]
    contrast = torch.nn.functional.avg_pool2d((image - image.mean((1, 2), keepdim=True))[:, None] ** 2, 32)
    ratio = contrast.amax((1, 2, 3)) / contrast.amin((1, 2, 3))
    assert ratio.median().item() > 4.0


def test_known_pixel_sizes_win() -> None:
    known = torch.tensor([0.2, math.nan, 0.5])
    blur = RandomDefocus(OpticsRange(), crop_px=16)
    pair = blur(sharp(3, 1, 32), seeds=torch.arange(3), pixel_size_um=known)
    assert pair.pixel_size_um[0].item() == pytest.approx(0.2)
    assert pair.pixel_size_um[2].item() == pytest.approx(0.5)
    assert pair.pixel_size_um[1].item() not in (0.2, 0.5)


def test_an_empty_crop_of_a_bright_image_is_as_noisy_as_the_image() -> None:
    optics = CLEAN.model_copy(update={"photons_at_peak": (100.0, 100.0)})
    blur = RandomDefocus(optics, crop_px=64)
    dim = torch.full((2, 1, 128, 128), 0.04)
    pair = blur(dim, seeds=torch.arange(2), peak=torch.tensor([1.0, math.nan]))
    # 0.04 of 100 photons is 4: half as much noise as light; for itself the crop has 100: a tenth.
    noise = pair.image.std((1, 2, 3)) / 0.04
    torch.testing.assert_close(noise, torch.tensor([0.5, 0.1]), rtol=0.06, atol=0)  # 4096 pixels: 1%; 16-bit steps


def test_darkness_stays_finite() -> None:
    pair = run(OpticsRange(), torch.zeros(8, 1, 64, 64))
    assert torch.isfinite(pair.image).all()
    assert torch.isfinite(pair.in_focus).all()


@pytest.mark.parametrize("side", [(48, 48), (50, 300), (401, 97)])
def test_any_input_not_smaller_than_the_crop_will_do(side: tuple[int, int]) -> None:
    pair = run(OpticsRange(), torch.rand(2, 1, *side, generator=torch.Generator().manual_seed(0)))
    assert pair.image.shape == (2, 1, 48, 48)


def test_autocast_does_not_touch_the_optics() -> None:
    images = sharp(2, 1, 96)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(CLEAN, images)
    assert torch.equal(mixed.image, run(CLEAN, images).image)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="phase contrast"):
        RandomDefocus(OpticsRange(), crop_px=16, modality="phase_contrast")
    with pytest.raises(ConfigurationError, match="crop_px"):
        RandomDefocus(OpticsRange(), crop_px=0)
    blur = RandomDefocus(OpticsRange(), crop_px=32)
    with pytest.raises(InputError, match="smaller than the crop"):
        blur(torch.zeros(1, 1, 16, 64), torch.Generator())
    with pytest.raises(InputError, match="float32"):
        blur(torch.zeros(1, 1, 64, 64, dtype=torch.float64), torch.Generator())
    with pytest.raises(InputError, match="never unseeded"):
        blur(torch.zeros(1, 1, 64, 64))
    with pytest.raises(InputError, match="seeds has shape"):
        blur(torch.zeros(2, 1, 64, 64), seeds=torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("numerical_aperture", (0.9, 0.3), "not a range"),
        ("numerical_aperture", (0.3, 1.2), "refractive_index above"),
        ("pixel_size_um", (0.0, 0.3), "more than 0"),
        ("photons_at_peak", (0.0, 10.0), "more than 0"),
        ("blur_radius_px", (0.0, 0.0), "room for some defocus"),
        ("in_focus_share", 0.9, "add to"),
        ("bit_depths", (), "one or more"),
        ("condenser_ratio", (0.5, 1.5), "within 0.1 and 1"),
        ("processed_cutoff_per_px", (0.0, 0.5), "more than 0"),
    ],
)
def test_impossible_ranges_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OpticsRange.model_validate({field: value})
