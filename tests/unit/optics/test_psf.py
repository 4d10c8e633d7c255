from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import j0, j1

from refocus.errors import InputError
from refocus.optics.psf import fast_fft_length, oversampling_for, widefield_psf
from refocus.optics.settings import OpticalSystem

FINE = OpticalSystem(numerical_aperture=0.75, wavelength_um=0.525, pixel_size_um=0.05)


def at(*distances: float) -> torch.Tensor:
    return torch.tensor(distances, dtype=torch.float64)


def test_in_focus_the_psf_is_airys() -> None:
    psf = widefield_psf(FINE, at(0.0), size_px=101, pixel_integration=False)[0].numpy()
    x = (np.arange(101) - 50) * 0.05
    v = 2 * np.pi * 0.75 / 0.525 * np.hypot(x[:, None], x)
    airy = np.where(v > 0, (2 * j1(v) / np.where(v > 0, v, 1)) ** 2, 1.0)
    # Cubic interpolation of the profile at 12 samples a period.
    np.testing.assert_allclose(psf / psf.max(), airy, atol=3e-4)


def test_the_first_dark_ring_lies_at_061_lambda_over_na() -> None:
    row = widefield_psf(FINE, at(0.0), size_px=101, pixel_integration=False)[0, 50, 50:].numpy()
    darkest = 0.05 * int(np.argmin(row[:14]))
    # Known to half a pixel of 0.05 um.
    assert darkest == pytest.approx(0.61 * 0.525 / 0.75, abs=0.026)


def test_intensity_on_the_axis_follows_the_integral_over_the_pupil() -> None:
    distances = np.linspace(0.1, 8.0, 40)
    psf = widefield_psf(FINE, torch.from_numpy(distances), size_px=401, pixel_integration=False)
    axis = psf[:, 200, 200].numpy()
    u = (np.arange(20000) + 0.5) / 20000
    field = np.exp(2j * np.pi * distances[:, None] / 0.525 * np.sqrt(1 - 0.75**2 * u)).mean(1)
    expected = np.abs(field) ** 2
    # Up to a constant: the window of 20 um holds 99% or more of the light at every distance.
    np.testing.assert_allclose(axis / axis[0], expected / expected[0], atol=0.01)


def test_the_axis_is_dark_at_the_axial_null() -> None:
    weak = OpticalSystem(numerical_aperture=0.2, wavelength_um=0.5, pixel_size_um=0.3)
    centre = widefield_psf(weak, at(0.0, weak.axial_null_um), size_px=151, pixel_integration=False)[:, 75, 75]
    # At NA 0.2 amplitude over cos(theta) is even to 2%: what is left on the axis is (0.01)^2 of the peak.
    assert (centre[1] / centre[0]).item() < 2e-4


def test_without_aberrations_both_sides_of_focus_look_alike(objective: OpticalSystem) -> None:
    above, below = widefield_psf(objective, at(3.0, -3.0), size_px=61)
    torch.testing.assert_close(above, below, atol=1e-12, rtol=0)


def test_spherical_aberration_tells_the_sides_apart(objective: OpticalSystem) -> None:
    aberrated = objective.model_copy(update={"spherical_waves": 0.1})
    above, below = widefield_psf(aberrated, at(3.0, -3.0), size_px=61)
    assert (above - below).abs().sum().item() > 0.1


def test_far_from_focus_the_light_fills_the_geometric_disc(objective: OpticalSystem) -> None:
    psf = widefield_psf(objective, at(10.0), size_px=141)[0]
    place = torch.arange(141) - 70
    radius = (place[:, None] ** 2 + place**2).sqrt()
    geometric = objective.blur_radius_px(10.0)
    inside = [psf[radius <= geometric * factor].sum().item() for factor in (0.5, 1.0, 45 / geometric)]
    # A uniform pupil under the sine condition gives k_perp^2 = area: at half the radius tan(theta) = 0.567 lies
    # sin^2 / NA^2 = 0.243 / 0.5625 = 0.43 of the light.
    assert inside[0] == pytest.approx(0.43, abs=0.02)
    assert inside[1] > 0.93
    assert inside[2] > 0.99


@pytest.mark.parametrize("distance", [0.0, 1.0, 5.0])
def test_each_psf_is_positive_and_sums_to_one(objective: OpticalSystem, distance: float) -> None:
    psf = widefield_psf(objective, at(distance), size_px=65)
    assert psf.min().item() >= 0
    assert psf.sum().item() == pytest.approx(1.0)


def test_pixels_gather_what_finer_pixels_gather_together() -> None:
    fine = OpticalSystem(numerical_aperture=0.75, wavelength_um=0.525, pixel_size_um=0.065)
    coarse = fine.model_copy(update={"pixel_size_um": 0.325})
    many = widefield_psf(fine, at(1.5), size_px=41 * 5)[0]
    few = widefield_psf(coarse, at(1.5), size_px=41)[0]
    # Both integrate exactly; windows are normalised alike.
    torch.testing.assert_close(many.reshape(41, 5, 41, 5).sum((1, 3)), few, atol=2e-6, rtol=1e-3)


def test_without_oversampling_the_in_focus_psf_is_8_percent_wrong(objective: OpticalSystem) -> None:
    right = widefield_psf(objective, at(0.0), size_px=15)
    wrong = widefield_psf(objective, at(0.0), size_px=15, oversampling=1)
    assert oversampling_for(objective) == 2
    assert 0.03 < ((wrong - right).norm() / right.norm()).item() < 0.15


@pytest.mark.parametrize("distance", [0.5, 3.0, 6.0])
def test_psf_generator_agrees(distance: float) -> None:
    propagators = pytest.importorskip("psf_generator.propagators")
    size, pixel_nm = 129, 80.0
    # Theirs spans the field with its outermost samples included, so its spacing is fov / (n - 1).
    theirs = propagators.ScalarSphericalPropagator(
        n_pix_pupil=513, n_pix_psf=size, wavelength=525, na=0.75, pix_size=pixel_nm * (size - 1) / size,
        defocus_step=1000 * distance, n_defocus=2, cos_factor=True, n_i=1.0, n_i0=1.0, n_s=1.0,
    )  # fmt: skip
    intensity = theirs.compute_focus_field().abs()[:, 0].double() ** 2
    intensity = intensity / intensity.sum((-1, -2), keepdim=True)
    system = FINE.model_copy(update={"pixel_size_um": pixel_nm / 1000})
    ours = widefield_psf(system, at(-distance, distance), size_px=size, pixel_integration=False)
    # Interpolation of the radial profile, measured 1.5e-4 of the peak; theirs is single precision.
    torch.testing.assert_close(ours, intensity, atol=3e-4 * intensity.max().item(), rtol=0)


@pytest.mark.parametrize(("ansi", "noll", "norm"), [(5, 6, 6), (3, 5, 6), (8, 7, 8), (7, 8, 8), (12, 11, 5)])
def test_psf_generator_agrees_on_aberrations_up_to_orientation(ansi: int, noll: int, norm: int) -> None:
    propagators = pytest.importorskip("psf_generator.propagators")
    size, pixel_nm = 129, 80.0
    coefficients = [0.0] * 13
    coefficients[ansi] = 0.9
    theirs = propagators.ScalarCartesianPropagator(
        n_pix_pupil=513, n_pix_psf=size, wavelength=525, na=0.75, pix_size=pixel_nm * (size - 1) / size,
        defocus_step=1000, n_defocus=2, sz_correction=False, zernike_coefficients=coefficients,
        n_i=1.0, n_i0=1.0, n_s=1.0,
    )  # fmt: skip
    intensity = (theirs.compute_focus_field().abs()[1, 0] ** 2).double()
    intensity = intensity / intensity.sum()
    # Theirs are radians at an edge of 1, Noll's have unit RMS; their rows and columns are exchanged, their angle
    # is measured from the other axis, and the transform's sign turns odd terms round.
    best = math.inf
    for sign in (1.0, -1.0):
        waves = ((noll, sign * 0.9 / (2 * math.pi) / math.sqrt(norm)), (4, 1e-12), (5, 1e-12))
        system = FINE.model_copy(update={"pixel_size_um": pixel_nm / 1000, "zernike_waves": waves})
        ours = widefield_psf(system, at(1.0), size_px=size, pixel_integration=False)[0]
        for view in (ours, ours.T):
            best = min(best, ((view - intensity).norm() / intensity.norm()).item())
    # Ours is periodic over the window and theirs has a jagged aperture: 1% each.
    assert best < 0.015


def test_a_pupil_without_symmetry_and_a_round_one_meet_where_the_asymmetry_vanishes(objective: OpticalSystem) -> None:
    almost = objective.model_copy(update={"zernike_waves": ((5, 1e-9),)})
    ours = widefield_psf(objective, at(0.0, 4.0), size_px=65)
    other = widefield_psf(almost, at(0.0, 4.0), size_px=65)
    # Light that comes round the periodic window of the second.
    assert ((ours - other).norm(dim=(1, 2)) / ours.norm(dim=(1, 2))).max().item() < 0.01


def test_systems_differ_within_a_batch(objective: OpticalSystem) -> None:
    other = objective.model_copy(update={"numerical_aperture": 0.4})
    together = widefield_psf([objective, other], at(2.0, 2.0), size_px=33)
    alone = widefield_psf(other, at(2.0), size_px=33)
    # The batch shares the finest oversampling.
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("zernike", [(), ((5, 0.05),)])
def test_defocus_has_a_gradient(objective: OpticalSystem, zernike: tuple[tuple[int, float], ...]) -> None:
    system = objective.model_copy(update={"zernike_waves": zernike})
    distance = torch.tensor([1.0, -2.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: widefield_psf(system, z, size_px=9), (distance,))


def test_torchs_bessel_function_is_good_to_single_precision() -> None:
    v = torch.linspace(0, 900, 5000, dtype=torch.float64)
    # Torch 2.13 errs by 3.6e-7 between 5 and 7, also in double precision.
    np.testing.assert_allclose(torch.special.bessel_j0(v).numpy(), j0(v.numpy()), atol=1e-6)


def test_fast_lengths_are_even_and_smooth() -> None:
    assert [fast_fft_length(n) for n in (1, 7, 97, 101, 511)] == [2, 8, 100, 108, 512]


def test_wrong_counts_are_refused(objective: OpticalSystem) -> None:
    with pytest.raises(InputError, match="2 systems for 3"):
        widefield_psf([objective, objective], at(0.0, 1.0, 2.0), size_px=9)
    with pytest.raises(InputError, match="size_px"):
        widefield_psf(objective, at(0.0), size_px=0)
    with pytest.raises(InputError, match="float"):
        widefield_psf(objective, torch.tensor([1]), size_px=9)
