"""The ladder of blurs against the transfer functions of whole point spread functions."""

from __future__ import annotations

import pytest
import torch

from refocus.optics.ladder import FREQUENCIES, PROFILES, RADII_PX, blur_ladder, cycles_per_px
from refocus.optics.psf import widefield_psf
from refocus.optics.settings import OpticalSystem


@pytest.mark.parametrize(("profile", "rung"), [(1, 10), (2, 33), (5, 10), (6, 33), (6, 50)])
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
