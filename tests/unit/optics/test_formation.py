from __future__ import annotations

import pytest
import torch
from scipy.signal import fftconvolve

from refocus.errors import InputError
from refocus.optics.formation import mirrored, sheet, tilted_sheet, volume
from refocus.optics.psf import widefield_psf
from refocus.optics.settings import OpticalSystem


def texture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_a_sheet_is_convolved_with_the_psf(objective: OpticalSystem) -> None:
    emission = texture(1, 60, 75)
    image = sheet(emission, objective, torch.tensor([2.0]), boundary="dark")[0]
    psf = widefield_psf(objective, torch.tensor([2.0]), size_px=81)[0]
    expected = fftconvolve(emission[0].numpy(), psf.numpy(), mode="same")
    # The PSF's tails beyond 40 pixels, 0.5% of the light, lie elsewhere in a wider window.
    torch.testing.assert_close(image, torch.from_numpy(expected), atol=0.01, rtol=0)


@pytest.mark.parametrize("distance", [0.0, 1.0, 10.0])
def test_light_is_kept(objective: OpticalSystem, distance: float) -> None:
    emission = texture(2, 128, 96)
    image = sheet(emission, objective, torch.tensor([distance]), boundary="periodic")
    torch.testing.assert_close(image.sum((1, 2)), emission.sum((1, 2)), rtol=1e-5, atol=0)
    assert image.min().item() > -1e-4


def test_an_even_field_stays_even_under_a_mirrored_rim(objective: OpticalSystem) -> None:
    image = sheet(torch.full((1, 40, 56), 3.0), objective, torch.tensor([6.0]))
    torch.testing.assert_close(image, torch.full_like(image, 3.0), atol=1e-4, rtol=0)


def test_a_level_sheet_is_a_tilted_sheet_without_tilt(objective: OpticalSystem) -> None:
    emission, z = texture(1, 48, 48), torch.tensor([1.5])
    torch.testing.assert_close(
        tilted_sheet(emission, objective, z, (0.0, 0.0)), sheet(emission, objective, z), atol=1e-5, rtol=0
    )


def test_a_tilted_sheet_is_sharp_where_it_meets_the_focal_plane(objective: OpticalSystem) -> None:
    emission = texture(1, 64, 256)
    slope = 0.06
    image = tilted_sheet(emission, objective, torch.tensor([0.0]), (0.0, slope))[0]
    # The same rise read as a level sheet: contrast at 96 columns right of the centre is that of 96 x 0.325 x 0.06 um.
    height = 96 * 0.325 * slope
    level = sheet(emission, objective, torch.tensor([height]))[0]
    columns = slice(128 + 96 - 8, 128 + 96 + 8)
    assert image[:, 120:136].std().item() > 2.5 * image[:, columns].std().item()
    # Contrast changes by a third over the 16 columns compared.
    assert image[:, columns].std().item() == pytest.approx(level[:, columns].std().item(), rel=0.2)


def test_a_thick_specimen_is_the_sum_of_its_slices(objective: OpticalSystem) -> None:
    emission = texture(3, 40, 44)
    focus = torch.tensor([-1.0, 0.0, 0.25])
    series = volume(emission, objective, focus, slice_um=0.5, boundary="dark")
    for plane, z in enumerate(focus.tolist()):
        parts = sheet(emission, objective, torch.tensor([z, z - 0.5, z - 1.0]), boundary="dark")
        # Padding differs between the two calls, and with it how far the PSF's tails reach.
        torch.testing.assert_close(series[plane], parts.sum(0), atol=0.01, rtol=0)


def test_colours_of_a_volume_are_imaged_alike(objective: OpticalSystem) -> None:
    emission = texture(2, 3, 32, 32)
    together = volume(emission, objective, torch.tensor([0.0, 2.0]), slice_um=1.0)
    assert together.shape == (2, 3, 32, 32)
    alone = volume(emission[:, 1], objective, torch.tensor([0.0, 2.0]), slice_um=1.0)
    torch.testing.assert_close(together[:, 1], alone)


def test_gradients_reach_specimen_and_defocus(objective: OpticalSystem) -> None:
    emission = texture(1, 12, 12).double().requires_grad_()
    distance = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda e, z: sheet(e, objective, z, boundary="periodic"), (emission, distance), nondet_tol=1e-12
    )


def test_mirroring_goes_on_beyond_the_image() -> None:
    assert mirrored(3, 9, 4).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert mirrored(1, 3, 1).tolist() == [0, 0, 0]
    assert mirrored(6, 2, -2).tolist() == [2, 3]


def test_wrong_shapes_are_refused(objective: OpticalSystem) -> None:
    with pytest.raises(InputError, match="expected float"):
        sheet(texture(8, 8), objective, torch.tensor([0.0]))
    with pytest.raises(InputError, match="2 sheets"):
        sheet(texture(2, 8, 8), objective, torch.zeros(3))
    with pytest.raises(InputError, match="slice_um"):
        volume(texture(2, 8, 8), objective, torch.zeros(1), slice_um=0.0)
    with pytest.raises(InputError, match="node_um"):
        tilted_sheet(texture(1, 8, 8), objective, torch.zeros(1), (0.1, 0.0), node_um=0.0)
