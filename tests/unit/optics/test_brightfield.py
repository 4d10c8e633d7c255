from __future__ import annotations

import pytest
import torch

from refocus.errors import InputError
from refocus.optics.brightfield import (
    EOSIN,
    HAEMATOXYLIN,
    stained_volume,
    transmission,
    weak_object_transfer,
)
from refocus.optics.formation import sheet
from refocus.optics.settings import RGB_WAVELENGTHS_UM, OpticalSystem

STAINS = (HAEMATOXYLIN, EOSIN)


def texture(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def test_twice_the_stain_squares_the_transmission() -> None:
    amounts = texture(2, 5, 5)
    torch.testing.assert_close(transmission(2 * amounts, STAINS), transmission(amounts, STAINS) ** 2)


def test_haematoxylin_is_blue_and_eosin_is_pink() -> None:
    red, green, blue = transmission(torch.tensor([[[0.6]], [[0.0]]]), STAINS).flatten().tolist()
    assert blue > red > green
    red, green, blue = transmission(torch.tensor([[[0.0]], [[0.6]]]), STAINS).flatten().tolist()
    assert red > blue > green


def test_a_thin_section_is_its_transmission_blurred(objective: OpticalSystem) -> None:
    amounts = texture(1, 2, 40, 40)
    focus = torch.tensor([0.0, 4.0])
    image = stained_volume(amounts, STAINS, objective, focus, slice_um=0.5)
    behind = transmission(amounts[0], STAINS)
    for colour, wavelength in enumerate(RGB_WAVELENGTHS_UM):
        optics = objective.model_copy(update={"wavelength_um": wavelength})
        blurred = sheet(behind[colour].expand(2, -1, -1), optics, focus)
        torch.testing.assert_close(image[:, colour], blurred, atol=1e-3, rtol=0)


def test_a_section_far_from_focus_loses_the_light_that_beer_and_lambert_take(objective: OpticalSystem) -> None:
    amounts = 0.2 * texture(8, 2, 48, 48)
    image = stained_volume(amounts, STAINS, objective, torch.tensor([14.0]), slice_um=0.5, boundary="periodic")
    expected = transmission(amounts.sum(0), STAINS).mean((-2, -1))
    torch.testing.assert_close(image[0].mean((-2, -1)), expected, atol=1e-4, rtol=0)


def test_nothing_stained_is_the_lamp(objective: OpticalSystem) -> None:
    image = stained_volume(torch.zeros(3, 2, 32, 32), STAINS, objective, torch.tensor([1.0]), slice_um=1.0)
    torch.testing.assert_close(image, torch.ones_like(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("condenser_na", [0.3, 0.5, 0.75])
def test_in_focus_a_phase_object_is_invisible(objective: OpticalSystem, condenser_na: float) -> None:
    _, phase = weak_object_transfer(objective, condenser_na, torch.zeros(1), torch.linspace(0, 3, 20))
    assert phase.abs().max().item() < 1e-5


def test_out_of_focus_phase_shows_under_a_narrow_condenser_only(objective: OpticalSystem) -> None:
    frequency = torch.linspace(0, 2, 40)
    above, below = (weak_object_transfer(objective, 0.3, torch.tensor([z]), frequency)[1] for z in (1.0, -1.0))
    assert above.abs().max().item() > 0.5
    torch.testing.assert_close(above, -below, atol=1e-5, rtol=0)
    full = weak_object_transfer(objective, 0.75, torch.tensor([1.0]), frequency)[1]
    assert full.abs().max().item() < 1e-5


def test_a_narrow_condenser_transfers_up_to_the_sum_of_apertures(objective: OpticalSystem) -> None:
    cutoff = (0.75 + 0.375) / 0.525
    loss, _ = weak_object_transfer(objective, 0.375, torch.zeros(1), torch.tensor([0.95, 1.05]) * cutoff)
    assert loss[0, 0].item() > 0.003
    assert abs(loss[0, 1].item()) < 1e-3  # the diaphragm's soft rim and the table's resolution


def test_a_narrow_condenser_deepens_the_field(objective: OpticalSystem) -> None:
    frequency = torch.tensor([0.3])
    wide, _ = weak_object_transfer(objective, 0.75, torch.tensor([1.5]), frequency)
    narrow, _ = weak_object_transfer(objective, 0.3, torch.tensor([1.5]), frequency)
    assert narrow.item() > wide.item() + 0.2


def test_amounts_have_a_gradient(objective: OpticalSystem) -> None:
    amounts = texture(2, 2, 16, 16).requires_grad_()
    stained_volume(amounts, STAINS, objective, torch.tensor([1.0]), slice_um=0.5, condenser_na=0.5).sum().backward()
    assert amounts.grad is not None
    assert (amounts.grad < 0).all()  # more stain, less light


def test_what_is_not_modelled_is_refused(objective: OpticalSystem) -> None:
    with pytest.raises(InputError, match="coherent light"):
        weak_object_transfer(objective, 0.0, torch.zeros(1), torch.zeros(1))
    coma = objective.model_copy(update={"zernike_waves": ((7, 0.1),)})
    with pytest.raises(InputError, match=r"Noll \[7\]"):
        weak_object_transfer(coma, 0.5, torch.zeros(1), torch.zeros(1))
    with pytest.raises(InputError, match=r"\[Z, S, H, W\]"):
        stained_volume(texture(2, 8, 8), STAINS, objective, torch.zeros(1), slice_um=0.5)
