from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from refocus.optics.transfer import RoundTransfer, gauss_legendre, interpolate, source_disc


def quadrature(defocus_um: float, frequencies: list[float], source_ratio: float | None = None) -> np.ndarray:
    """Hopkins' cross-coefficient by brute force in the plane: NA 0.75, 0.525 um."""
    line = (np.arange(800) + 0.5) / 400 - 1
    y, x = line[:, None], line[None, :]
    rho = np.hypot(x, y)
    source = np.ones_like(rho)
    if source_ratio is not None:
        inside = np.clip((source_ratio - rho) / 0.06 + 0.5, 0, 1)
        source = inside**2 * (3 - 2 * inside)

    def pupil(r2: np.ndarray) -> np.ndarray:
        waves = defocus_um * np.sqrt(np.clip(1 - 0.75**2 * r2, 0, None)) / 0.525
        return np.where(r2 <= 1, np.exp(2j * np.pi * waves), 0)

    here = pupil(x**2 + y**2)
    total = (source * np.abs(here) ** 2).sum()
    return np.array([(source * pupil((x + s) ** 2 + y**2) * here.conj()).sum() / total for s in frequencies])


@pytest.fixture(scope="module")
def table() -> RoundTransfer:
    return RoundTransfer.reaching(150.0, steepest_pupil=400.0)


def pupil_waves(table: RoundTransfer, defocus_um: float) -> torch.Tensor:
    return (defocus_um * ((1 - 0.75**2 * table.pupil_rho_squared).sqrt() - 1) / 0.525)[None]


def test_gauss_legendre_is_exact_for_polynomials() -> None:
    nodes, weights = gauss_legendre(12)
    for power in (0, 5, 23):
        assert (weights * nodes**power).sum().item() == pytest.approx(1 / (power + 1), rel=1e-12)


def test_in_focus_it_is_the_overlap_of_two_discs(table: RoundTransfer) -> None:
    waves = pupil_waves(table, 0.0)
    transfer = table(torch.ones_like(waves), waves)[0]
    s = torch.linspace(0, 2, len(transfer))
    overlap = 2 / math.pi * (torch.acos(s / 2) - s / 2 * (1 - s**2 / 4).clamp_min(0).sqrt())
    # Light beyond the table, 2 / (pi v) at v = 240, blurs the cusp at zero frequency.
    torch.testing.assert_close(transfer, overlap, atol=2e-3, rtol=0)
    torch.testing.assert_close(transfer[20:], overlap[20:], atol=5e-4, rtol=0)


@pytest.mark.parametrize("defocus_um", [1.0, 4.0, 8.0])
def test_out_of_focus_it_is_the_pupils_autocorrelation(table: RoundTransfer, defocus_um: float) -> None:
    waves = pupil_waves(table, defocus_um)
    transfer = table(torch.ones_like(waves), waves)
    frequencies = [0.02, 0.05, 0.1, 0.3, 0.7, 1.3, 1.8]
    read = interpolate(transfer, torch.tensor([frequencies]) / table.frequency_step)[0]
    # The jagged rim of the brute-force disc: 1 / 400 of the radius.
    np.testing.assert_allclose(read.numpy(), quadrature(defocus_um, frequencies).real, atol=3e-3)


@pytest.mark.parametrize("ratio", [0.5, 0.8])
@pytest.mark.parametrize("defocus_um", [0.0, 2.0, -5.0])
def test_a_condenser_gives_hopkins_cross_coefficient(table: RoundTransfer, ratio: float, defocus_um: float) -> None:
    waves = pupil_waves(table, defocus_um)
    source = source_disc(table.pupil_rho_squared, torch.tensor([ratio]))
    cross = table(torch.ones_like(waves), waves, source)
    frequencies = [0.03, 0.1, 0.3, 0.7, 1.2]
    place = torch.tensor([frequencies]) / table.frequency_step
    expected = quadrature(defocus_um, frequencies, ratio)
    np.testing.assert_allclose(interpolate(cross.real, place)[0].numpy(), expected.real, atol=3e-3)
    np.testing.assert_allclose(interpolate(cross.imag, place)[0].numpy(), expected.imag, atol=3e-3)


def test_a_condenser_that_fills_the_pupil_changes_nothing(table: RoundTransfer) -> None:
    waves = pupil_waves(table, 3.0)
    full = source_disc(table.pupil_rho_squared, torch.tensor([1.0]))
    cross = table(torch.ones_like(waves), waves, full)
    torch.testing.assert_close(cross.real, table(torch.ones_like(waves), waves), atol=1e-6, rtol=0)
    assert cross.imag.abs().max().item() < 1e-6


def test_defocus_never_raises_the_transfer_above_focus(table: RoundTransfer) -> None:
    still = pupil_waves(table, 0.0)
    focus = table(torch.ones_like(still), still)
    for z in (0.3, 1.0, 3.0, 7.0):
        waves = pupil_waves(table, z)
        # Cauchy-Schwarz; float32 sums over a thousand samples.
        assert (table(torch.ones_like(waves), waves).abs() - focus).max().item() < 2e-3


def test_interpolation_ends_at_the_cutoff() -> None:
    table = torch.tensor([[1.0, 0.5, 0.0]])
    read = interpolate(table, torch.tensor([[0.0, 0.5, 2.0, 2.1, 50.0]]))
    torch.testing.assert_close(read, torch.tensor([[1.0, 0.75, 0.0, 0.0, 0.0]]))
