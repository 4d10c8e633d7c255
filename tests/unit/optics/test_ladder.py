"""The ladder of blurs against the transfer functions of whole point spread functions."""

from __future__ import annotations

import pytest
import torch

from refocus.optics.ladder import (
    BLIND_PROFILES,
    FREQUENCIES,
    PROFILES,
    RADII_PX,
    Profile,
    blur_ladder,
    cycles_per_px,
    nearest_profile,
)
from refocus.optics.psf import widefield_psf
from refocus.optics.settings import OpticalSystem


@pytest.mark.parametrize(("profile", "rung"), [(1, 10), (2, 33), (5, 10), (6, 33), (6, 50), (17, 33)])
def test_rungs_are_transfer_functions_of_the_objective(profile: int, rung: int) -> None:
    sampling, aperture = PROFILES[profile]
    system = OpticalSystem(numerical_aperture=aperture, wavelength_um=0.525, pixel_size_um=sampling * 0.525 / aperture)
    distance = system.defocus_um_for(RADII_PX[rung])
    psf = widefield_psf(system, torch.tensor([distance], dtype=torch.float64), size_px=512, pixel_integration=False)[0]
    theirs = torch.fft.fft2(torch.fft.ifftshift(psf)).real[0, :257].float()
    ours = blur_ladder().defocused[profile, rung, ::4]
    # A PSF on a grid holds 512 px of light and folds what lies beyond Nyquist back; the Hankel transform does neither.
    torch.testing.assert_close(ours[:200], theirs[:200], atol=0.02, rtol=0)


def test_all_light_passes_at_frequency_zero_and_focus_passes_most() -> None:
    ladder = blur_ladder()
    assert ladder.defocused.shape == (len(PROFILES), len(RADII_PX), FREQUENCIES)
    assert ladder.defocused[..., 0].eq(1.0).all()
    # Defocus never passes more than focus (Cauchy-Schwarz); quadrature and float32 leave a thousandth.
    assert (ladder.defocused.abs() <= ladder.in_focus[:, None] + 2e-3).all()


def test_frequencies_end_at_nyquist() -> None:
    assert cycles_per_px()[0] == 0.0
    assert cycles_per_px()[-1] == 0.5


@pytest.mark.parametrize("number", range(len(PROFILES)))
def test_a_profile_is_nearest_to_its_own_optics(number: int) -> None:
    sampling, aperture = PROFILES[number]
    # In oil the same rays belong to a larger aperture.
    for index in (1.0, 1.515):
        numerical = index * aperture
        system = OpticalSystem(
            numerical_aperture=numerical, wavelength_um=0.6, pixel_size_um=sampling * 0.6 / numerical,
            refractive_index=index, coverslip_index=1.6,
        )  # fmt: skip
        assert nearest_profile(system) == number


def test_pixels_that_cannot_be_the_images_own_have_no_profile() -> None:
    for pixel_um in (0.02, 3.0):
        assert (
            nearest_profile(OpticalSystem(numerical_aperture=0.75, wavelength_um=0.525, pixel_size_um=pixel_um)) is None
        )


def test_blind_profiles_are_of_apertures_that_can_be_told_apart() -> None:
    blind = [PROFILES[number] for number in BLIND_PROFILES]
    assert {profile.numerical_aperture for profile in blind} == {0.4, 0.75, 0.88}
    assert Profile(0.4, 0.95) not in blind
