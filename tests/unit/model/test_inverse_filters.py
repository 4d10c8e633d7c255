"""Inverse filters for an estimated blur: they undo it, keep the light, are local, and follow a map of radii."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from blurs import blur_planes, out_of_focus
from refocus.model.deconvolution import RichardsonLucy
from refocus.model.inverse_filters import GAIN, InverseFilters, _continued, filter_reach_px, inverse_gains
from refocus.optics.ladder import FREQUENCIES, PROFILES, RADII_PX

LEVELS = ((3e-4, 60.0), (1.2e-2, 20.0))


def _scene(side: int = 384) -> torch.Tensor:
    noise = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    smooth = F.avg_pool2d(noise, 7, 1, 3)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def test_the_filter_for_a_blur_undoes_most_of_it() -> None:
    sharp = _scene()
    blurred = out_of_focus(sharp, 7.0)
    found = blurred + InverseFilters(LEVELS)(blurred, blur_planes(7.0, 384, 384))[:, :1] / GAIN
    inside = (..., slice(64, -64), slice(64, -64))
    before = (blurred - sharp)[inside].square().mean()
    # White detail of 7 px under a blur of 14 px: even without noise a regularised inverse leaves what lies near the
    # zeros of the transfer function, less than 60% of the squared error here.
    assert (found - sharp)[inside].square().mean() < 0.6 * before


def test_every_filter_keeps_the_light() -> None:
    gains = inverse_gains(*LEVELS[0])
    assert gains.shape == (len(PROFILES), len(RADII_PX), FREQUENCIES)
    torch.testing.assert_close(gains[..., 0], torch.ones(gains.shape[:2]), atol=0, rtol=0)


def test_a_constant_needs_no_change_at_any_size() -> None:
    filters = InverseFilters(LEVELS)
    for size in ((1, 1), (5, 40), (64, 64)):
        answer = filters(torch.full((1, 3, *size), 0.7), blur_planes(12.0, *size))
        assert answer.shape == (1, 6, *size)
        assert answer.abs().max() < 1e-4  # a transform's rounding


@pytest.mark.parametrize("radius_px", [RADII_PX[20], RADII_PX[-1]])
def test_a_filter_reaches_no_further_than_it_says(radius_px: float) -> None:
    reach = math.ceil(filter_reach_px(radius_px))
    point = torch.zeros(1, 1, 1, 2 * reach + 101)
    point[..., 50] = 1.0
    answer = InverseFilters(LEVELS)(point, blur_planes(radius_px, 1, point.shape[-1]))[0, 0, 0]
    # Gains between their columns are interpolated: a ten-thousandth of the peak wraps around.
    assert answer[50 + reach + 2 :].abs().max() < 1e-2 * answer.abs().max()


@pytest.mark.parametrize("radius_px", [7.0, 20.0])
def test_light_from_beyond_the_rims_is_not_taken_for_a_mirror_image(radius_px: float) -> None:
    generator = torch.Generator().manual_seed(2)
    discs = F.avg_pool2d((torch.rand(1, 1, 512, 512, generator=generator) > 0.998).float(), 13, 1, 6) * 169
    window = (..., slice(128, 384), slice(128, 384))
    noise = 0.01 * torch.randn(1, 1, 256, 256, generator=generator)
    seen, planes = out_of_focus(discs, radius_px)[window] + noise, blur_planes(radius_px, 256, 256)
    filters = InverseFilters(LEVELS[:1])

    width = round(radius_px)
    rims = torch.ones(256, 256, dtype=torch.bool)
    rims[width:-width, width:-width] = False

    def error(change: torch.Tensor) -> float:
        return float((seen + change / GAIN - discs[window])[..., rims].square().mean())

    rungs = RichardsonLucy()(seen, planes).rungs
    assert error(filters(seen, planes, rungs)) < 0.9 * error(filters(seen, planes))


def test_what_surrounds_an_image_leaves_no_edge_at_its_rims() -> None:
    generator = torch.Generator().manual_seed(1)
    seen = out_of_focus(_scene(256), 12.0) + 0.02 * torch.randn(1, 1, 256, 256, generator=generator)
    (rung,) = RichardsonLucy()(seen, blur_planes(12.0, 256, 256)).rungs
    assert rung.around is not None
    field, reach = _continued(seen, [rung])
    assert torch.equal(field[..., reach : reach + 256, reach : reach + 256], seen)
    steps = (field[..., 1:, :] - field[..., :-1, :])[0, 0, :, reach : reach + 256].abs().mean(-1)
    # Between the last row outside and the first inside as between any two rows of noise.
    assert steps[reach - 1] < 1.3 * steps[reach : reach + 255].mean()
    assert steps[reach + 255] < 1.3 * steps[reach : reach + 255].mean()


def test_radii_that_only_the_last_column_has_are_filtered_by_their_own_rung() -> None:
    x, planes, filters = _scene(64), blur_planes(RADII_PX[44], 64, 64), InverseFilters(LEVELS)
    planes[:, 0, :, -1] = RADII_PX[46]
    # Richardson-Lucy works on 2 x 2 means, and must not miss it.
    found = filters(x, planes, RichardsonLucy()(x, planes).rungs)
    planes[:, 0] = RADII_PX[46]
    even = filters(x, planes, RichardsonLucy()(x, planes).rungs)
    torch.testing.assert_close(found[..., -1:], even[..., -1:], atol=1e-4, rtol=0)  # rounding


def test_uneven_radii_between_rungs_mix_their_filters() -> None:
    x, filters = _scene(96), InverseFilters(LEVELS)
    low, high = filters(x, blur_planes(RADII_PX[30], 96, 96)), filters(x, blur_planes(RADII_PX[31], 96, 96))
    planes = blur_planes((RADII_PX[30] * RADII_PX[31]) ** 0.5, 96, 96)
    planes[:, 0, :, 48:] = RADII_PX[31]
    mixed = filters(x, planes)
    torch.testing.assert_close(mixed[..., :48], 0.5 * (low + high)[..., :48], atol=1e-4, rtol=0)  # rounding
    torch.testing.assert_close(mixed[..., 48:], high[..., 48:], atol=1e-4, rtol=0)


def test_an_even_radius_between_rungs_gets_a_filter_between_theirs() -> None:
    x, filters = _scene(96), InverseFilters(LEVELS)
    radii = RADII_PX[30], (RADII_PX[30] * RADII_PX[31]) ** 0.5, RADII_PX[31]
    low, middle, high = (filters(x, blur_planes(radius, 96, 96)) for radius in radii)
    apart = float((high - low).square().mean())
    assert 0.1 * apart < float((middle - low).square().mean()) < 0.6 * apart
    assert 0.1 * apart < float((middle - high).square().mean()) < 0.6 * apart


def test_each_place_gets_the_filter_of_its_own_radius() -> None:
    x, filters = _scene(128), InverseFilters(LEVELS)
    planes = blur_planes(RADII_PX[20], 128, 128)
    planes[:, 0, :, 64:] = RADII_PX[40]
    mixed = filters(x, planes)
    torch.testing.assert_close(mixed[..., :64], filters(x, blur_planes(RADII_PX[20], 128, 128))[..., :64])
    torch.testing.assert_close(mixed[..., 64:], filters(x, blur_planes(RADII_PX[40], 128, 128))[..., 64:])


def test_no_blur_asks_for_no_change() -> None:
    x = _scene(64)
    assert InverseFilters(LEVELS)(x, blur_planes(0.0, 64, 64)).eq(0).all()


def test_gains_travel_with_the_weights_and_are_used_at_once() -> None:
    ours, other = InverseFilters(LEVELS[:1]), InverseFilters(LEVELS[1:])
    x, planes = _scene(64), blur_planes(9.0, 64, 64)
    before = ours(x, planes)
    ours.load_state_dict(other.state_dict())
    assert not torch.allclose(ours(x, planes), before, atol=1e-2)
    with torch.device("meta"):
        assert InverseFilters(LEVELS).gains.is_meta
