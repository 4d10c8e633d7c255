from __future__ import annotations

import pytest
import torch

from refocus.errors import ConfigurationError, InputError
from refocus.optics.specimens import SPECIMENS, Specimen, grow
from refocus.optics.specimens.fields import scattered, smooth_noise, splat, streaks
from refocus.optics.specimens.nuclei import grow_nuclei
from refocus.optics.specimens.specimen import Grid


def small(kind: str, seed: int = 0) -> Specimen:
    return grow(kind, size_px=(96, 120), pixel_size_um=0.5, slice_um=1.0, seed=seed)


@pytest.mark.parametrize("kind", SPECIMENS)
def test_specimens_are_finite_positive_and_textured(kind: str) -> None:
    specimen = small(kind)
    assert specimen.light.shape[-2:] == (96, 120)
    assert specimen.modality == SPECIMENS[kind].modality
    assert torch.isfinite(specimen.light).all()
    assert specimen.light.min().item() >= 0
    column = specimen.light.sum(0)
    assert (column.std() / column.mean()).item() > 0.2
    # The height to focus on lies within the specimen.
    assert 0 < specimen.focus_um < (len(specimen.light) - 1) * specimen.slice_um


@pytest.mark.parametrize("kind", SPECIMENS)
def test_equal_seeds_grow_equal_specimens(kind: str) -> None:
    assert torch.equal(small(kind, 3).light, small(kind, 3).light)
    assert not torch.equal(small(kind, 3).light, small(kind, 4).light)


@pytest.mark.parametrize("kind", ["nuclei", "puncta"])
def test_fluorescent_columns_peak_at_one(kind: str) -> None:
    column = small(kind).light.sum(0).flatten()
    # All but the brightest 0.1%.
    assert column.quantile(0.998).item() <= 1.0


def test_a_tilt_lifts_one_side_and_keeps_the_light() -> None:
    grid = Grid.spanning(4.0, (64, 64), slice_um=0.5, pixel_um=0.5)
    specimen = grow_nuclei(grid, torch.Generator().manual_seed(0))
    tilted = specimen.tilted(5.0)
    assert tilted.light.sum().item() == pytest.approx(specimen.light.sum().item(), rel=1e-4)
    heights = torch.arange(len(tilted.light)) * tilted.slice_um - tilted.focus_um
    flat = torch.arange(len(specimen.light)) * specimen.slice_um - specimen.focus_um
    for columns, centre in ((slice(0, 8), 3.5), (slice(56, 64), 59.5)):
        risen = (tilted.light[..., columns].sum((1, 2)) * heights).sum() / tilted.light[..., columns].sum()
        before = (specimen.light[..., columns].sum((1, 2)) * flat).sum() / specimen.light[..., columns].sum()
        expected = (centre - 31.5) * 0.5 * 0.0875  # tan(5 degrees)
        # Within the 8 columns light is not spread evenly: up to 4 columns' rise.
        assert (risen - before).item() == pytest.approx(expected, abs=4 * 0.5 * 0.0875)


def test_no_tilt_is_no_change() -> None:
    specimen = small("puncta")
    assert specimen.tilted(0.0) is specimen
    with pytest.raises(InputError, match="45"):
        specimen.tilted(60.0)


def test_unknown_and_impossible_specimens_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected one of nuclei"):
        grow("unicorn", size_px=(64, 64), pixel_size_um=0.3)
    with pytest.raises(ConfigurationError, match="cannot be grown"):
        grow("nuclei", size_px=(4, 64), pixel_size_um=0.3)


def test_random_fields_have_unit_variance_and_their_scale() -> None:
    fine, coarse = (smooth_noise((128, 128), (0.5, 0.5), s, torch.Generator().manual_seed(1)) for s in (0.3, 4.0))
    assert fine.std().item() == pytest.approx(1.0, abs=1e-4)
    step = [(f[:, 1:] - f[:, :-1]).std().item() for f in (fine, coarse)]
    assert step[1] < 0.3 * step[0]


def test_scattered_centres_keep_their_distance() -> None:
    centres = scattered((100.0, 80.0), 5.0, torch.Generator().manual_seed(0))
    distance = torch.cdist(centres, centres) + 100 * torch.eye(len(centres))
    assert distance.min().item() >= 5.0 - 1e-4
    # Random packing covers about half of the plane with discs: more than 150 here.
    assert len(centres) > 150


def test_splatting_keeps_weight_and_place() -> None:
    volume = torch.zeros(5, 6, 7)
    splat(volume, torch.tensor([[1.25, 2.5, 3.75], [100.0, 0.0, 0.0]]), torch.tensor([2.0, 5.0]))
    assert volume.sum().item() == pytest.approx(2.0)
    z, y, x = (torch.arange(n) for n in volume.shape)
    assert (volume.sum((1, 2)) * z).sum().item() / 2 == pytest.approx(1.25)
    assert (volume.sum((0, 2)) * y).sum().item() / 2 == pytest.approx(2.5)
    assert (volume.sum((0, 1)) * x).sum().item() / 2 == pytest.approx(3.75)


def test_streaks_run_along_their_direction() -> None:
    noise = torch.randn(96, 96, generator=torch.Generator().manual_seed(0))
    along_x = streaks(noise, torch.zeros(96, 96), 20.0)
    across = (along_x[1:] - along_x[:-1]).std()
    along = (along_x[:, 1:] - along_x[:, :-1]).std()
    assert along.item() < 0.5 * across.item()
