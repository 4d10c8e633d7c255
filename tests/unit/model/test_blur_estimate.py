"""The blur that an image betrays: right on known blurs, harmless where there is nothing to read."""

from __future__ import annotations

from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, median_filter, uniform_filter
from skimage import data as skimage_data
from skimage.transform import rescale, rotate
from torch import Tensor

from pretended import asked_of_accelerator, pretended_accelerator
from refocus.model.blur_estimate import WINDOW_PX, _least_costly, estimate_blur, fitting_blur, with_blur
from refocus.model.blur_spectrum import COLOURS, noise_colour, rung_costs
from refocus.model.normalisation import estimate as normalised_by
from refocus.optics.ladder import BLIND_PROFILES, PROFILES, RADII_PX, Profile, nearest_profile
from refocus.optics.psf import widefield_psf
from refocus.optics.settings import OpticalSystem

SYSTEM = OpticalSystem(numerical_aperture=0.75, wavelength_um=0.525, pixel_size_um=0.325)
LOW_APERTURE = OpticalSystem(numerical_aperture=0.4, wavelength_um=0.525, pixel_size_um=0.5)


def _blurred(
    sharp: np.ndarray, radius_px: float, photons: float = 1000.0, system: OpticalSystem = SYSTEM
) -> np.ndarray:
    """Blur [Y, X] with the wave-optical PSF and count photons."""
    image = torch.from_numpy(sharp / sharp.max())
    psf = widefield_psf(system, torch.tensor([system.defocus_um_for(radius_px)]), size_px=192)[0]
    psf = torch.nn.functional.pad(psf, (0, image.shape[1] - 192, 0, image.shape[0] - 192))
    psf = torch.roll(psf, (-96, -96), (0, 1))
    seen = torch.fft.irfft2(torch.fft.rfft2(image) * torch.fft.rfft2(psf), s=image.shape).clamp_min(0.0)
    counts = torch.poisson(seen * photons, generator=torch.Generator().manual_seed(1))
    return counts.numpy()


def _textures() -> list[np.ndarray]:
    return [
        skimage_data.camera().astype(np.float32),
        skimage_data.brick().astype(np.float32),
        skimage_data.coins().astype(np.float32)[:256, :256],
    ]


@pytest.mark.parametrize("system", [SYSTEM, LOW_APERTURE])
@pytest.mark.parametrize("radius_px", [7.0, 9.0, 14.0, 21.0, 30.0])
def test_radius_of_a_known_blur_is_found(radius_px: float, system: OpticalSystem) -> None:
    seen = [_blurred(texture, radius_px, system=system)[None] for texture in _textures()]
    found = [float(np.median(estimate_blur(image).radius_px)) for image in seen]
    # Rungs are 6% apart; the median of three pictures of cameramen, bricks and coins stays within two of them. Small
    # blurs of low apertures hardly differ from a softer texture.
    assert abs(np.log(np.median(found) / radius_px)) < (0.12 if radius_px > 8 or system is SYSTEM else 0.2), found


@pytest.mark.parametrize(
    ("aperture", "pixel_um", "radius_px"), [(0.3, 0.65, 7.0), (0.45, 0.5, 7.0), (0.9, 0.16, 14.0), (0.95, 0.325, 28.0)]
)
def test_told_optics_find_blurs_that_look_like_others_through_usual_ones(
    aperture: float, pixel_um: float, radius_px: float
) -> None:
    system = OpticalSystem(numerical_aperture=aperture, wavelength_um=0.6, pixel_size_um=pixel_um)
    profile = nearest_profile(system)
    errors = {"blind": 0.0, "told": 0.0}
    for texture in _textures():
        image = _blurred(texture, radius_px, system=system)[None]
        for name, known in (("blind", None), ("told", profile)):
            found = estimate_blur(image, profile=known)
            errors[name] += abs(np.log(np.median(found.radius_px) / radius_px)) / 3.0
            assert (found.profile == profile) if known is not None else (found.profile in BLIND_PROFILES)
    # Between two samplings of the steepest profiles two fifths remain.
    assert errors["told"] < min(0.45, 0.7 * errors["blind"]), errors


def test_wide_minima_are_read_by_their_mean_and_narrow_ones_by_their_lowest_point() -> None:
    rungs = torch.arange(len(RADII_PX), dtype=torch.float32)
    place = 52.3
    narrow = 40.0 * (rungs - place).square()
    # Flat towards wider blurs, steep towards narrower ones, or the other way round. Below 10 px and at the ladder's
    # first rung it is the lowest point, and at its end nothing beyond is made up.
    leaning = torch.where(rungs < 52, 8.0 * (52.0 - rungs), (rungs - 52.0))
    several = [narrow, leaning, leaning.flip(0).roll(41), leaning.roll(-20), rungs, -2.0 * rungs]
    at_mean, wider, narrower, lowest, first, last = _least_costly(torch.stack(several)).tolist()
    assert at_mean == pytest.approx(1.06**place, rel=2e-3)
    assert wider > RADII_PX[53]
    assert narrower < RADII_PX[51]
    assert lowest == pytest.approx(RADII_PX[32], rel=0.03)
    assert first == RADII_PX[0]
    assert RADII_PX[60] < last <= RADII_PX[63]


def test_no_radius_is_wider_than_what_can_be_undone() -> None:
    image = _blurred(_textures()[0], 31.0)[None]
    free, bound = estimate_blur(image, profile=6), estimate_blur(image, profile=6, widest_px=20.0)
    assert free.radius_px.min() > 25.0
    np.testing.assert_array_equal(bound.radius_px, np.minimum(free.radius_px, 20.0))
    assert estimate_blur(image, widest_px=0.5).radius_px.max() == 0.5


def test_a_few_large_objects_change_little() -> None:
    # Two waves across the field; where each of their proofs counted whole, the mean error was 0.061.
    y, x = np.mgrid[:256, :256] * (2.0 * np.pi * 2.0 / 256.0)
    errors = []
    for texture in _textures():
        for radius_px in (8.0, 14.0, 22.0):
            seen = _blurred(texture[:256, :256], radius_px)
            seen = seen + 0.3 * seen.max() * (np.cos(x) + np.cos(y))
            costs = rung_costs(torch.from_numpy(seen.astype(np.float32))[None], profile=6)[0, 0]
            errors.append(abs(np.log(RADII_PX[int(costs.argmin())] / radius_px)))
    assert np.mean(errors) < 0.05, errors


def test_units_offset_and_type_change_nothing() -> None:
    counts = _blurred(_textures()[0], 14.0)
    plain = estimate_blur(counts[None])
    scaled = estimate_blur((counts * 7 + 300).astype(np.uint16)[None])
    np.testing.assert_array_equal(plain.radius_px, scaled.radius_px)


def _jpeg(counts: np.ndarray) -> np.ndarray:
    eight_bits = np.round(counts * (230.0 / counts.max())).astype(np.uint8)
    return imagecodecs.jpeg_decode(imagecodecs.jpeg_encode(eight_bits, level=80)).astype(np.float32)


@pytest.mark.parametrize(
    ("processed", "wider"),
    [
        (lambda counts: gaussian_filter(counts, 0.8), 1.0),
        (lambda counts: median_filter(counts, 3), 1.0),
        (lambda counts: rescale(counts, 1.5, order=3), 1.5),
        (lambda counts: rotate(counts, 30.0, order=1, mode="reflect", preserve_range=True), 1.0),
        (_jpeg, 1.0),
    ],
    ids=["smoothed", "median", "enlarged", "turned", "jpeg"],
)
def test_the_blur_of_processed_images_is_found(
    processed: Callable[[np.ndarray], np.ndarray], wider: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [processed(_blurred(texture, 14.0))[None] for texture in _textures()]
    estimates = [estimate_blur(image) for image in seen]
    assert all(estimate.colour is not None for estimate in estimates)
    found = np.median([np.median(estimate.radius_px) for estimate in estimates])
    assert abs(np.log(found / (14.0 * wider))) < 0.12, found
    # Were their noise taken for white, most of them would pass for sharp or for another blur.
    monkeypatch.setattr("refocus.model.blur_estimate.noise_colour", lambda *_, **__: torch.tensor(0))
    as_white = [np.median(estimate_blur(image).radius_px) for image in seen]
    assert np.mean([abs(np.log(radius / (14.0 * wider))) > 0.3 for radius in as_white]) > 0.5, as_white


def test_noise_of_cameras_and_detail_in_focus_are_not_taken_for_processed() -> None:
    for radius_px in (0.0, 3.5, 7.0, 14.0, 28.0):
        for texture in _textures():
            sharp = gaussian_filter(texture, 1.0)
            seen = _blurred(sharp, radius_px) if radius_px else np.random.default_rng(0).poisson(sharp)
            assert COLOURS[int(noise_colour(torch.from_numpy(seen.astype(np.float32))[None, :256, :256]))] is None
    assert COLOURS[int(noise_colour(torch.rand(1, 20, 20)))] is None


def test_a_blur_that_changes_across_the_field_is_followed() -> None:
    texture = np.tile(_textures()[1], (1, 2))
    left, right = _blurred(texture, 8.0), _blurred(texture, 20.0)
    field = np.concatenate([left[:, :512], right[:, 512:]], axis=1)
    over = estimate_blur(field[None]).over(slice(0, 512), slice(0, 1024))[0]
    assert over.shape == (512, 1024)
    assert abs(np.log(np.median(over[:, :200]) / 8.0)) < 0.2  # neighbouring windows share what they know
    assert abs(np.log(np.median(over[:, -200:]) / 20.0)) < 0.2


def test_a_large_plane_is_judged_where_something_is() -> None:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:1536, :1536]
    sharp = np.zeros(y.shape, np.float32)
    for row, column in rng.uniform((250, 700), (500, 950), (30, 2)):
        sharp = np.maximum(sharp, (np.hypot(y - row, x - column) < 9.0).astype(np.float32))
    plane = _blurred(sharp + 0.02, 24.0)[None]
    there = estimate_blur(plane).over(slice(300, 450), slice(750, 900))[0]
    assert abs(np.log(np.median(there) / 24.0)) < 0.08


def test_single_windows_that_stray_follow_their_neighbours() -> None:
    # Two of 144 windows of this section, blurred evenly by a square, look sharp.
    section = np.tile(skimage_data.immunohistochemistry(), (4, 4, 1))
    blurred = np.moveaxis(uniform_filter(section, (13, 13, 1)), -1, 0)
    radii = estimate_blur(blurred, normalisation=normalised_by(blurred, absorbing=True)).radius_px
    assert radii.shape == (12, 12)
    assert radii.max() < 1.1 * radii.min()


def test_windows_agree_with_the_whole_map() -> None:
    estimate = estimate_blur(np.random.default_rng(0).random((1, 600, 900)))
    whole = estimate.over(slice(0, 600), slice(0, 900))
    np.testing.assert_array_equal(whole[:, 100:300, 450:800], estimate.over(slice(100, 300), slice(450, 800)))


@pytest.mark.parametrize("shape", [(1, 1), (17, 300), (31, 31), (WINDOW_PX + 1, WINDOW_PX - 1)])
def test_any_size_gets_some_answer_on_the_ladder(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((1, *shape))
    over = estimate_blur(image).over(slice(0, shape[0]), slice(0, shape[1]))
    assert over.shape == (2, *shape)
    assert RADII_PX[0] - 1e-4 <= over[0].min() <= over[0].max() <= RADII_PX[-1] + 1e-3
    assert over[1].flat[0] in range(len(PROFILES))


def test_a_constant_says_in_focus() -> None:
    assert estimate_blur(np.full((1, 300, 300), 5)).radius_px.max() == RADII_PX[0]


def _crops() -> Tensor:
    """Of all that is done for one crop and not for another: [8, 1, 192, 192]."""
    texture = _textures()[2][:192, :192]
    planes = [_blurred(texture, radius_px)[None] for radius_px in (2.0, 6.0, 14.0, 22.0, 36.0)]
    planes += [_blurred(texture, 30.0, system=LOW_APERTURE)[None], gaussian_filter(planes[2], (0, 0.7, 0.7))]
    planes += [np.zeros_like(planes[0])]
    return torch.from_numpy(np.stack([normalised_by(plane).apply(plane) for plane in planes]))


@pytest.mark.parametrize("told", [None, [6, 6, 6, 17, 6, 1, 6, 6]])
@pytest.mark.parametrize("absorbing", [False, True])
def test_a_batch_gives_what_each_crop_gives_alone(told: list[int] | None, absorbing: bool) -> None:
    crops = _crops()
    alone = [
        fitting_blur(crops[n : n + 1], profile=None if told is None else told[n], absorbing=absorbing)
        for n in range(len(crops))
    ]
    assert len({round(float(radius), 1) for radius, _ in torch.cat(alone)}) >= 5
    with pretended_accelerator() as device:
        together = fitting_blur(crops.to(device), profile=told, absorbing=absorbing)
        assert together.device == device
    # Radii between rungs are counted in parts of 0.1%, and sums of another order decide for a neighbouring one.
    torch.testing.assert_close(together.cpu(), torch.cat(alone), rtol=2e-3, atol=0.0)


def test_many_crops_cost_an_accelerator_no_more_operations_than_few() -> None:
    crops = _crops()[[2, 4, 6]]
    with pretended_accelerator() as device:
        few, many = crops.to(device), crops.repeat(3, 1, 1, 1).to(device)
        fitting_blur(few)  # tables are made once
        with asked_of_accelerator() as by_few:
            fitting_blur(few)
        with asked_of_accelerator() as by_many:
            fitting_blur(many)
    assert by_many == by_few
    assert by_few.waits <= 4
    # One by one it would be a thousand for each crop out of focus.
    assert by_few.operations < 5000


def test_a_plane_is_judged_where_it_is_told_to_with_few_waits() -> None:
    plane = np.tile(_blurred(_textures()[0], 14.0), (1, 2))[None]
    plain = estimate_blur(plane)
    with pretended_accelerator() as device, asked_of_accelerator() as asked:
        found = estimate_blur(plane, device=device)
    # One processor computed both, more windows at a time.
    np.testing.assert_allclose(found.radius_px, plain.radius_px, rtol=2e-3)
    assert found.profile == plain.profile
    assert asked.operations > 500
    # However many rows of windows there are.
    assert asked.waits <= 10


def test_one_profile_is_told_for_all_or_one_for_each() -> None:
    crops = _crops()[:2]
    assert fitting_blur(crops, profile=17)[:, 1].tolist() == [17.0, 17.0]
    assert fitting_blur(crops, profile=[17, 2])[:, 1].tolist() == [17.0, 2.0]
    assert rung_costs(crops[:, 0]).shape == (2, len(BLIND_PROFILES), len(RADII_PX))
    assert with_blur(crops, fitting_blur(crops)).shape == (2, 3, 192, 192)


def test_next_to_nothing_at_the_rim_says_nothing() -> None:
    y, x = np.mgrid[:176, :176]
    discs = sum(1.0 / (1.0 + np.exp(np.hypot(y - row, x - 176.0) - 5.0)) for row in (72, 88))
    counts = np.random.default_rng(0).poisson(60.0 + 1500.0 * discs)
    # All rungs fit alike, and of rungs that do the widest is not to be believed, nor the oddest profile.
    costs = rung_costs(torch.from_numpy(counts.astype(np.float32))[None])
    assert not (costs - costs[..., :1]).any()
    found = estimate_blur(counts[None])
    assert found.radius_px.max() == RADII_PX[0]
    assert PROFILES[found.profile] == Profile(0.4, 0.75)
