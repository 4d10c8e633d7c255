"""What light can explain: a corner at the blur's radius where the ground is dark, silence where nothing is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from refocus.model.blur_estimate import estimate_blur
from refocus.model.blur_light import MOST_NATS, SMALLEST_WINDOW_PX, _before_weak_corners, support
from refocus.model.blur_spectrum import rung_costs
from refocus.model.normalisation import estimate
from refocus.optics.ladder import PROFILES, RADII_PX, RUNG_RATIO, blur_ladder, nearest_profile, widened
from refocus.optics.psf import widefield_psf
from refocus.optics.settings import OpticalSystem

SYSTEM = OpticalSystem(numerical_aperture=0.75, wavelength_um=0.525, pixel_size_um=0.325)
PROFILE = nearest_profile(SYSTEM) or 0
SIDE_PX = 256


def _nuclei(seed: int, *, smallest_px: float = 11.0, largest_px: float = 13.0) -> np.ndarray:
    """Soft discs, nearly of one size unless told: then their spectrum has rings of zeros of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    image = np.zeros((SIDE_PX, SIDE_PX))
    for _ in range(14):
        away = np.hypot(y - rng.uniform(0, SIDE_PX), x - rng.uniform(0, SIDE_PX))
        image += rng.uniform(0.5, 1.0) / (1.0 + np.exp((away - rng.uniform(smallest_px, largest_px)) / 1.5))
    return image


def _seen(sharp: np.ndarray, radius_px: float, photons: float = 1000.0, system: OpticalSystem = SYSTEM) -> Tensor:
    """Blurred by the wave-optical PSF, counted, and normalised as networks see it: [h, w]."""
    psf = widefield_psf(system, torch.tensor([system.defocus_um_for(radius_px)]), size_px=192)[0]
    psf = torch.nn.functional.pad(psf, (0, SIDE_PX - 192, 0, SIDE_PX - 192)).roll((-96, -96), (0, 1))
    size = (SIDE_PX, SIDE_PX)
    image = torch.fft.irfft2(torch.fft.rfft2(torch.from_numpy(sharp).float()) * torch.fft.rfft2(psf), s=size)
    generator = torch.Generator().manual_seed(3)
    counts = torch.poisson(image.clamp_min(0.0) * photons, generator=generator).numpy()
    return torch.from_numpy(estimate(counts).apply(counts))


def _undecided(from_rung: int = 30) -> Tensor:
    """A spectrum that only knows that it is out of focus."""
    return torch.cat([torch.full((from_rung,), 20.0), torch.zeros(len(RADII_PX) - from_rung)])


def _support(window: Tensor, costs: Tensor, *, doubted: bool = True, absorbing: bool = False) -> Tensor:
    """Of one window [h, w] and its costs [radii]."""
    return support(window[None], costs[None], torch.tensor([PROFILE]), doubted=doubted, absorbing=absorbing)[0]


@pytest.mark.parametrize(("radius_px", "error"), [(16.0, 0.2), (20.0, 0.1), (25.0, 0.1), (31.0, 0.1), (36.0, 0.1)])
def test_the_corner_is_at_the_radius(radius_px: float, error: float) -> None:
    found = []
    for seed in range(3):
        gains = _support(_seen(_nuclei(seed), radius_px), _undecided())
        assert float(gains.max()) > 5.0
        found.append(RADII_PX[int(gains.argmax())])
    assert abs(math.log(np.median(found) / radius_px)) < error, found


def test_a_large_nucleus_is_no_blur_of_its_own_size() -> None:
    # A disc of 38 px looks like a point out of focus, and has a corner there; the way up to it tells that it is wider.
    nuclei = [_nuclei(seed, smallest_px=36.0, largest_px=40.0) for seed in range(3)]
    gains = [_support(_seen(large, 13.0), _undecided()) for large in nuclei]
    at = {
        radius_px: min(range(len(RADII_PX)), key=lambda n: abs(RADII_PX[n] - radius_px)) for radius_px in (13.0, 37.0)
    }
    for own in gains:
        assert float(own[at[13.0] - 1 : at[13.0] + 2].max()) >= 0.0
        assert float(own[at[37.0] :].max()) < -20.0, own


def _corner(rung: int, nats: float) -> Tensor:
    """What a corner of this height gains the rungs about it."""
    return (nats - 0.3 * nats * (torch.arange(len(RADII_PX)) - float(rung)).abs()).clamp_min(0.0)


def test_weak_corners_lie_beyond_the_blur() -> None:
    # Sharp enough to be the blur's own: from 20 nats on below 20 px, from 30 on above.
    sharp = torch.stack([_corner(45, 20.0), _corner(45, MOST_NATS), _corner(57, 30.0)])
    torch.testing.assert_close(_before_weak_corners(sharp), sharp)
    # 1.2 rungs further for each logarithm, and five at most: 1.2 ln(30 / 5.67) is two rungs.
    weak = 30.0 / math.exp(2.0 / 1.2)
    found = _before_weak_corners(torch.stack([_corner(57, weak), _corner(57, 0.01), torch.zeros(len(RADII_PX))]))
    torch.testing.assert_close(found[0], _corner(55, weak), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(found[1], _corner(52, 0.01), atol=1e-6, rtol=0.0)
    assert not found[2].any()


def test_what_absorbs_has_weak_corners_at_the_blur_itself() -> None:
    # Little is dark here, so corners are weak.
    window = _seen(_nuclei(0) + 0.6, 25.0) + 0.3
    shining, absorbing = (_support(window, _undecided(), doubted=False, absorbing=kind) for kind in (False, True))
    assert 0.0 < float(absorbing.max()) < 30.0
    assert not torch.equal(shining, absorbing)
    torch.testing.assert_close(shining, _before_weak_corners(absorbing[None])[0])


def test_it_corrects_a_spectrum_that_takes_one_ring_for_another() -> None:
    radius_px, by_spectrum, by_both = 28.0, [], []
    for seed in range(8):
        window = _seen(_nuclei(seed), radius_px)
        by_spectrum.append(RADII_PX[int(rung_costs(window[None], profile=PROFILE)[0, 0].argmin())])
        by_both.append(float(np.median(estimate_blur(window.numpy()[None], profile=PROFILE).radius_px)))
    wrong = [sum(abs(math.log(found / radius_px)) > 0.1 for found in those) for those in (by_spectrum, by_both)]
    assert wrong[0] >= 3, by_spectrum
    assert wrong[1] <= wrong[0] // 3, by_both


@pytest.mark.parametrize(
    ("aperture", "pixel_um", "known_as", "at_least"), [(0.4, 0.5, 0.4, 4), (0.75, 0.325, 0.75, 4), (0.9, 0.16, 0.88, 2)]
)
def test_it_tells_apertures_apart(aperture: float, pixel_um: float, known_as: float, at_least: int) -> None:
    system = OpticalSystem(numerical_aperture=aperture, wavelength_um=0.525, pixel_size_um=pixel_um)
    several = [_nuclei(seed, smallest_px=4.0, largest_px=20.0) for seed in range(5)]
    found = [estimate_blur(_seen(nuclei, 30.0, system=system).numpy()[None]) for nuclei in several]
    right = sum(PROFILES[blur.profile].numerical_aperture == known_as for blur in found)
    # Steep ones in part: an unusual aperture has to be much better than the usual one.
    assert right >= at_least, [PROFILES[blur.profile] for blur in found]


def test_nothing_is_said_where_nothing_can_be_known() -> None:
    window = _seen(_nuclei(0), 25.0)
    assert not _support(window[: SMALLEST_WINDOW_PX - 1], _undecided()).any()
    # A spectrum that sees no blur is believed.
    assert not _support(window, torch.arange(float(len(RADII_PX)))).any()
    # Rungs that it all but excludes stay excluded.
    sure = torch.full((len(RADII_PX),), 200.0)
    sure[45:48] = 0.0
    assert not _support(window, sure)[:45].any()
    assert not _support(window, sure)[48:].clamp_min(0.0).any()
    assert not _support(torch.zeros(SIDE_PX, SIDE_PX), _undecided()).any()


def test_noise_alone_decides_nothing() -> None:
    noise = torch.rand(SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0))
    assert float(_support(noise, _undecided()).max()) < 15.0


@pytest.mark.parametrize("profile", [2, PROFILE, 18])
def test_a_rung_widened_continues_the_ladder(profile: int) -> None:
    ladder = blur_ladder().defocused[profile]
    for number in (61, 63):
        missed = (widened(ladder[59], RUNG_RATIO ** (number - 59)) - ladder[number]).abs().max()
        assert float(missed) < 0.2 * float((ladder[59] - ladder[number]).abs().max())
