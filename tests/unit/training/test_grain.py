"""Grain: of the strength that was asked for, and only where there is a specimen."""

from __future__ import annotations

import math

import pytest
import torch

from refocus.training.grain import with_grain


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("strength", [0.02, 0.3])
def test_the_logarithm_of_what_shines_deviates_as_asked(strength: float) -> None:
    grained = with_grain(torch.full((1, 256, 256), 7.0), (strength, strength), _generator())
    # The widest grain has a correlation area of 4 pi w^2 = 18 px: 3600 independent values know it to a few per cent.
    assert float((grained / 7.0).log().std()) == pytest.approx(strength, rel=0.06)
    assert float((grained / 7.0).log().mean()) == pytest.approx(0.0, abs=0.06 * strength)


def test_the_absorbance_deviates_where_specimens_absorb() -> None:
    grained = with_grain(torch.full((3, 256, 256), 0.5), (0.2, 0.2), _generator(), absorbing=True)
    absorbance = -grained.log()
    assert float((absorbance / math.log(2.0)).log().std()) == pytest.approx(0.2, rel=0.06)
    # All colours are taken by the same stain.
    assert torch.equal(grained[0], grained[2])


@pytest.mark.parametrize(("ground", "absorbing"), [(0.0, False), (1.0, True)])
def test_clear_ground_stays_clear(ground: float, absorbing: bool) -> None:
    image = torch.full((1, 64, 64), ground)
    assert torch.equal(with_grain(image, (0.3, 0.3), _generator(), absorbing=absorbing), image)


def test_the_generator_decides_strength_width_and_grain() -> None:
    image = torch.ones(1, 96, 96)
    first, again, other = (with_grain(image, (0.02, 0.3), _generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    deviations = [float(with_grain(image, (0.02, 0.3), _generator(seed)).log().std()) for seed in range(60)]
    assert min(deviations) < 0.03 < 0.2 < max(deviations) < 0.33
    assert not torch.equal(first, other)


def test_grain_is_no_wider_than_said() -> None:
    for seed in range(6):
        texture = with_grain(torch.ones(1, 256, 256), (0.1, 0.1), _generator(seed))[0].log()
        apart = texture[:, 8:] * texture[:, :-8]
        # Gaussian grain of 1.2 px has exp(-(8 / 1.2)^2 / 4), nothing, in common at 8 px.
        assert abs(float(apart.mean())) < 0.1 * float(texture.square().mean())
