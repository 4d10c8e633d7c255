"""Rungs that images need, and what undoes their blur: a batch gives what each image gives alone, for far less."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blurs import blur_planes
from pretended import Asked, asked_of_accelerator, pretended_accelerator
from refocus.model.deconvolution import RichardsonLucy
from refocus.model.inverse_filters import InverseFilters
from refocus.model.rungs import rungs_in, tables_of
from refocus.optics.ladder import RADII_PX, blur_ladder

LEVELS = ((3e-4, 60.0), (1.2e-2, 20.0))
SIDE = 96


def _images(count: int, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(count, channels, SIDE, SIDE, generator=generator) > 0.99).float()
    return F.avg_pool2d(points, 7, 1, 3) * 20 + 0.02 * torch.randn(points.shape, generator=generator)


def _blurs() -> Tensor:
    """Of all that is done for one image and not for another: in focus, narrow, wide, uneven, of several profiles."""
    planes = torch.cat(
        [blur_planes(radius_px, SIDE, SIDE) for radius_px in (0.5, 2.0, 3.7, 9.0, 10.3, 21.0, 36.0, 9.0)]
    )
    planes[:, 1] = torch.tensor([6, 6, 17, 5, 1, 6, 14, 6.0])[:, None, None]
    planes[-1, 0] = torch.linspace(8.0, 13.0, SIDE)
    return planes


def _undone(x: Tensor, blur: Tensor) -> tuple[Tensor, Tensor]:
    deconvolution, filters = (module.to(x.device) for module in (RichardsonLucy(), InverseFilters(LEVELS)))
    deconvolved = deconvolution(x, blur)
    return deconvolved.changes, filters(x, blur, deconvolved.rungs)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_gives_what_each_image_gives_alone(channels: int) -> None:
    x, blur = _images(8, channels), _blurs()
    alone = [_undone(x[n : n + 1], blur[n : n + 1]) for n in range(len(x))]
    together = _undone(x, blur)
    with pretended_accelerator() as device:
        on_device = [changes.cpu() for changes in _undone(x.to(device), blur.to(device))]
    for number, expected in enumerate(zip(*alone, strict=True)):
        for found in (together[number], on_device[number]):
            # Transforms of other lengths round differently, and a hundred steps make a little more of it.
            torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-4 * float(found.abs().max()))


def test_many_tiles_of_one_blur_cost_an_accelerator_hardly_more_than_one() -> None:
    def asked(count: int) -> Asked:
        x, blur = _images(count).to(device), blur_planes(14.2, SIDE, SIDE).expand(count, -1, -1, -1).to(device)
        with asked_of_accelerator() as by_these:
            _undone(x, blur)
        return by_these

    with pretended_accelerator() as device:
        asked(1)  # tables are made once
        one, eight = asked(1), asked(8)
    assert eight.operations < 1.15 * one.operations
    assert eight.waits == one.waits


def test_crops_of_different_blurs_cost_an_accelerator_less_than_one_by_one() -> None:
    x, blur = _images(8), _blurs()
    with pretended_accelerator() as device:
        x, blur = x.to(device), blur.to(device)
        _undone(x, blur)  # tables are made once
        with asked_of_accelerator() as together:
            _undone(x, blur)
        with asked_of_accelerator() as one_by_one:
            for number in range(len(x)):
                _undone(x[number : number + 1], blur[number : number + 1])
    # The longest of them has as many steps as it has alone.
    assert together.operations < 0.5 * one_by_one.operations


def test_even_blurs_have_one_rung_and_uneven_ones_all_between() -> None:
    planes = blur_planes(RADII_PX[20] * 1.01, 32, 32).repeat(2, 1, 1, 1)
    planes[1, 0, :, 16:] = RADII_PX[23]
    even, *uneven = rungs_in(planes)
    assert (even.image, even.number, even.share) == (0, 20, 1.0)
    # Parts of a rung are counted in 64.
    assert even.factor == pytest.approx(1.01, rel=math.log(RADII_PX[1]) / 128)
    assert [(rung.image, rung.number, rung.factor) for rung in uneven] == [(1, n, 1.0) for n in (20, 21, 22, 23)]
    counted = sum(torch.as_tensor(rung.weight(planes[:, 0])) for rung in uneven)
    torch.testing.assert_close(counted, torch.ones(32, 32), atol=1e-5, rtol=0)  # rounding of logarithms


def test_a_rung_of_factor_one_is_the_ladders_own() -> None:
    (rung,) = rungs_in(blur_planes(RADII_PX[40], 32, 32))
    ladder = blur_ladder().defocused
    assert torch.equal(tables_of([rung], ladder)[0], ladder[rung.profile, 40])
