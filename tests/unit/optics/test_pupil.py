from __future__ import annotations

import math

import pytest
import torch

from refocus.errors import InputError
from refocus.optics.pupil import PupilBatch, aberration_waves, defocus_waves, mismatch_waves, zernike
from refocus.optics.settings import OpticalSystem


def disc(samples: int = 401) -> tuple[torch.Tensor, torch.Tensor]:
    """Polar coordinates of points that fill the unit disc evenly."""
    line = torch.linspace(-1, 1, samples, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    rho = (x**2 + y**2).sqrt()
    inside = rho <= 1
    return rho[inside], torch.atan2(y, x)[inside]


def test_zernike_polynomials_are_orthonormal_over_the_disc() -> None:
    rho, azimuth = disc()
    terms = torch.stack([zernike(noll, rho, azimuth) for noll in range(1, 23)])
    products = terms @ terms.T / rho.numel()
    # The square grid leaves 1/401 of its rim uncertain, where high orders are largest (sqrt(2 (n + 1)) < 3.8).
    torch.testing.assert_close(products, torch.eye(22, dtype=torch.float64), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("noll", "at_edge"),
    [(4, math.sqrt(3)), (11, math.sqrt(5)), (22, math.sqrt(7)), (2, 2.0), (6, math.sqrt(6)), (8, math.sqrt(8))],
)
def test_zernike_terms_have_nolls_normalisation_at_the_edge(noll: int, at_edge: float) -> None:
    edge = zernike(noll, torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    assert edge.item() == pytest.approx(at_edge)


def test_defocus_of_a_weak_lens_is_the_paraxial_parabola() -> None:
    weak = PupilBatch.of([OpticalSystem(numerical_aperture=0.05, wavelength_um=0.5, pixel_size_um=1.0)])
    rho_squared = torch.linspace(0, 1, 11)
    parabola = -0.5 * 0.05**2 / 0.5 * rho_squared
    # The next term is NA^2 / 4 = 6e-4 of it; float32 holds 1 - cos to 1e-7 / 1e-3.
    torch.testing.assert_close(defocus_waves(rho_squared, weak)[0], parabola, atol=3e-7, rtol=7e-4)


def test_what_refocusing_undoes_is_no_aberration() -> None:
    # A layer of the immersion's own index is defocus and nothing else.
    same = OpticalSystem(
        numerical_aperture=0.8, wavelength_um=0.5, pixel_size_um=0.1, specimen_depth_um=20.0, specimen_index=1.0
    )
    pupil = PupilBatch.of([same], dtype=torch.float64)
    left = mismatch_waves(torch.linspace(0, 1, 101, dtype=torch.float64), pupil)
    assert left.std().item() < 1e-9


def test_a_thick_coverslip_gives_mostly_primary_spherical_aberration() -> None:
    rho, azimuth = disc(201)
    thick = OpticalSystem(numerical_aperture=0.75, wavelength_um=0.5, pixel_size_um=0.1, coverslip_error_um=20.0)
    waves = aberration_waves(rho, azimuth, PupilBatch.of([thick], dtype=torch.float64))[0]
    primary = (waves * zernike(11, rho, azimuth)).mean()
    spread = waves.std()
    # Primary spherical carries nearly all of the variance; the rest is of higher order. The classical estimate
    # W040 = d (n^2 - 1) NA^4 / (8 n^3) gives 0.074 waves an um at n = 1.5255, over 6 sqrt(5) for the RMS of Noll 11.
    assert primary.abs() / spread > 0.95
    estimate = 20.0 * (1.5255**2 - 1) * 0.75**4 / (8 * 1.5255**3) / 0.5 / (6 * math.sqrt(5))
    # At NA 0.75 the fifth and higher powers add: the estimate is the right size, not the right number.
    assert 1.0 < primary.abs().item() / estimate < 2.0


def test_no_system_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        PupilBatch.of([])
