"""Richardson-Lucy by the estimated blur: sharper, positive, light kept, the same in every tile."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from blurs import blur_planes, out_of_focus
from refocus.model.deconvolution import STAGES, Deconvolution, RichardsonLucy, schedule
from refocus.model.inverse_filters import GAIN
from refocus.optics.ladder import PROFILES, RADII_PX, blur_ladder


def _spots(side: int = 256) -> torch.Tensor:
    """Bright discs on a black ground, where light's being positive says much."""
    points = (torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)) > 0.999).float()
    return F.avg_pool2d(points, 7, 1, 3) * 49


@pytest.mark.parametrize("radius_px", [7.0, 14.0, 28.0])
def test_the_second_stage_comes_nearer_to_what_was_blurred(radius_px: float) -> None:
    sharp = _spots()
    blurred = out_of_focus(sharp, radius_px)
    change = RichardsonLucy()(blurred, blur_planes(radius_px, 256, 256)).changes / GAIN
    means, truth = F.avg_pool2d(blurred, 2), F.avg_pool2d(sharp, 2)
    inside = (..., slice(24, -24), slice(24, -24))
    errors = [(means + step - truth)[inside].square().mean() for step in (0.0 * change[:, :1], *change.split(1, 1))]
    assert errors[2] < 0.8 * errors[1] < 0.8 * errors[0], errors


@pytest.mark.parametrize("profile", range(len(PROFILES)))
def test_light_beyond_the_rim_does_not_run_away(profile: int) -> None:
    # Sharp to the pixel up to the rim, and taken for a little out of focus.
    for seed, number in product(range(3), (16, 17, 18)):
        image = (torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(seed)) > 0.5).float()
        steps = Deconvolution(image, 2, [RADII_PX[number]], blur_ladder().defocused[profile, number])
        # A single bright place among dark ones is several times as bright as its blurred image.
        assert steps.shown(steps.advanced(24), blur_ladder().in_focus[profile]).max() < 20


def test_wide_blurs_get_more_steps_at_no_more_cost() -> None:
    steps = [schedule(radius) for radius in RADII_PX]
    # A coarse step costs a quarter of a fine one.
    cost = [(s.smooth_coarse + s.coarse) / 4 + s.smooth_fine + s.fine for s in steps]
    assert max(cost) <= 34
    made = [sum(s) for s in steps]
    assert made[-1] > 3 * made[0]


def test_light_stays_in_the_image_and_is_positive() -> None:
    blurred = out_of_focus(_spots(), 10.0)
    means = F.avg_pool2d(blurred, 2)
    for change in RichardsonLucy()(blurred, blur_planes(10.0, 256, 256)).changes.split(1, 1):
        found = means + change / GAIN
        # The transfer function of focus rings a little about bright spots.
        assert found.min() > -0.05 * found.max()
        # What lies beyond the rims is unknown, and takes or gives some of the light there.
        assert abs(float(found.sum() / means.sum()) - 1.0) < 0.02


def test_near_focus_it_has_nothing_to_say() -> None:
    x = torch.rand(1, 3, 64, 64)
    answer, (rung,) = RichardsonLucy()(x, blur_planes(2.0, 64, 64))
    assert answer.shape == (1, 3 * STAGES, 32, 32)
    assert answer.eq(0).all()
    assert rung.around is None


@pytest.mark.parametrize(("radius_px", "halo_px"), [(9.0, 64), (21.0, 224)])
def test_tiles_agree_with_the_whole(radius_px: float, halo_px: int) -> None:
    side, cut = 2 * halo_px + 256, 64
    x = out_of_focus(_spots(side), radius_px)
    deconvolution = RichardsonLucy()
    whole = deconvolution(x, blur_planes(radius_px, side, side)).changes / GAIN
    part = deconvolution(x[..., cut:], blur_planes(radius_px, side, side - cut)).changes / GAIN
    # A halo from the cut, what the steps passed on from there has faded: a tenth of a grey level of 8 bits at most,
    # though the two fields have transforms of different length.
    difference = (whole[..., (cut + halo_px) // 2 :] - part[..., halo_px // 2 :]).abs().max()
    assert difference < 0.1 / 255 * F.avg_pool2d(x, 2).max()


def test_uneven_radii_between_rungs_mix_their_answers() -> None:
    x, deconvolution = _spots(96), RichardsonLucy()
    low, high = (deconvolution(x, blur_planes(RADII_PX[rung], 96, 96)).changes for rung in (30, 31))
    planes = blur_planes((RADII_PX[30] * RADII_PX[31]) ** 0.5, 96, 96)
    planes[:, 0, :, 48:] = RADII_PX[31]
    mixed = deconvolution(x, planes).changes
    torch.testing.assert_close(mixed[..., :24], 0.5 * (low + high)[..., :24], atol=1e-4, rtol=0)  # rounding
    torch.testing.assert_close(mixed[..., 24:], high[..., 24:], atol=1e-4, rtol=0)


def test_an_even_radius_between_rungs_is_deconvolved_by_itself() -> None:
    deconvolution, middle_px = RichardsonLucy(), (RADII_PX[52] * RADII_PX[53]) ** 0.5
    sharp = _spots()
    blurred = out_of_focus(sharp, middle_px)
    means, truth = F.avg_pool2d(blurred, 2), F.avg_pool2d(sharp, 2)
    inside = (..., slice(24, -24), slice(24, -24))
    left = [
        (means + deconvolution(blurred, blur_planes(radius, 256, 256)).changes[:, 1:] / GAIN - truth)[inside]
        .square()
        .mean()
        for radius in (RADII_PX[52], middle_px, RADII_PX[53])
    ]
    # A little wider than the truth is best after so many steps: what counts is that it beats mixing both.
    assert left[1] < 0.49 * (left[0] + left[2]), left


def test_transfer_functions_travel_with_the_weights() -> None:
    assert RichardsonLucy().state_dict()["defocused"].shape[:2] == (len(PROFILES), len(RADII_PX))
    with torch.device("meta"):
        assert RichardsonLucy().defocused.is_meta
