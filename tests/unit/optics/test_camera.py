from __future__ import annotations

import math

import pytest
import torch

from refocus.errors import InputError
from refocus.optics.camera import EXACT_BELOW, Camera, _poisson_of, coloured, shot_noise

DRAWS = 400_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mean", [0.0, 0.3, 5.0, EXACT_BELOW - 0.1, EXACT_BELOW, 40.0, 3000.0])
def test_counts_have_poissons_mean_variance_and_skewness(mean: float) -> None:
    counts = shot_noise(torch.full((DRAWS,), mean), generator=seeded()).double()
    # Five standard errors of each estimate from DRAWS counts.
    assert counts.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(max(mean, 1e-9) / DRAWS))
    spread = math.sqrt((2 * mean**2 + mean) / DRAWS)
    assert counts.var().item() == pytest.approx(mean, abs=5 * max(spread, 1e-9))
    if mean:
        skewness = (((counts - mean) / math.sqrt(mean)) ** 3).mean().item()
        # Above the exact range the third moment is that of a second-order expansion: 2% short at a mean of 16.
        assert skewness == pytest.approx(1 / math.sqrt(mean), abs=5 * math.sqrt(15 / DRAWS) + 0.02 / math.sqrt(mean))


@pytest.mark.parametrize("mean", [4.0, 200.0])
def test_read_noise_adds_its_variance(mean: float) -> None:
    counts = shot_noise(torch.full((DRAWS,), mean), read_noise=3.0, generator=seeded()).double()
    variance = mean + 9.0
    assert counts.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / DRAWS))
    assert counts.var().item() == pytest.approx(variance, abs=5 * variance * math.sqrt(2.2 / DRAWS))


def test_the_noise_has_a_gradient_towards_the_light() -> None:
    light = torch.full((2000,), 100.0, requires_grad=True)
    shot_noise(light, generator=seeded()).sum().backward()
    assert light.grad is not None
    # d/dm (m + sqrt(m) z) = 1 + z / (2 sqrt(m)): one on average, z / 20 each.
    assert light.grad.mean().item() == pytest.approx(1.0, abs=5 * 0.05 / math.sqrt(2000))


def test_equal_seeds_give_equal_noise() -> None:
    light = torch.rand(1000) * 100
    assert torch.equal(shot_noise(light, generator=seeded(3)), shot_noise(light, generator=seeded(3)))
    assert not torch.equal(shot_noise(light, generator=seeded(3)), shot_noise(light, generator=seeded(4)))


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_impossible_light_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="finite and not negative"):
        shot_noise(torch.tensor([1.0, bad]))


def test_impossible_light_reaches_no_accelerators_poisson() -> None:
    light = torch.tensor([math.nan, math.inf, -1.0, 0.0, 9.0, 1e6])
    counts = _poisson_of(light < EXACT_BELOW, light, seeded())
    assert counts[:4].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert 0.0 < counts[4] < 40.0
    assert counts[5] == 0.0


def test_grey_levels_follow_gain_and_offset() -> None:
    camera = Camera(gain_adu_per_electron=0.5, offset_adu=100, read_noise_electrons=0, quantum_efficiency=0.8)
    light = torch.full((DRAWS,), 1000.0)
    recorded = camera.record(light, seeded()).double()
    assert camera.noise_free_adu(light)[0].item() == pytest.approx(500.0)
    # 800 electrons: variance 800 x 0.25, and 1/12 from rounding.
    assert recorded.mean().item() == pytest.approx(500.0, abs=5 * math.sqrt(200 / DRAWS))
    assert recorded.var().item() == pytest.approx(200 + 1 / 12, rel=5 * math.sqrt(2 / DRAWS))


def test_values_are_whole_and_end_at_the_bit_depth() -> None:
    camera = Camera(bit_depth=8, gain_adu_per_electron=1.0, offset_adu=2.0, read_noise_electrons=5.0)
    recorded = camera.record(torch.linspace(0, 1000, 5000), seeded())
    assert torch.equal(recorded, recorded.round())
    assert recorded.min().item() == 0
    assert recorded.max().item() == 255


def test_pixels_saturate_at_the_full_well() -> None:
    camera = Camera(full_well_electrons=1000, gain_adu_per_electron=1.0, offset_adu=0, read_noise_electrons=0)
    assert camera.record(torch.full((100,), 5000.0), seeded()).eq(1000).all()


@pytest.mark.parametrize(("cutoff_per_px", "order"), [(0.2, 2.0), (0.3, 8.0)])
def test_coloured_noise_falls_as_told_and_keeps_its_lowest_frequencies(cutoff_per_px: float, order: float) -> None:
    white = torch.randn(64, 128, 128, generator=seeded())
    power = torch.fft.fft2(coloured(white, cutoff_per_px, order)).abs().square().mean(0) / 128**2
    frequency = torch.fft.fftfreq(128)
    expected = torch.exp(-(((frequency[:, None] ** 2 + frequency**2).sqrt() / cutoff_per_px) ** order))
    # Each entry is the mean of 64 exponentially distributed ones.
    assert ((power - expected).abs() < 7.0 * expected / 8.0 + 1e-6).all()
    torch.testing.assert_close(coloured(white, math.inf, order), white, atol=1e-5, rtol=0)
