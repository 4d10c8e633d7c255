"""What networks and their estimates compute with lies on their device: nothing meets it that was left on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from blurs import out_of_focus
from pretended import MemoriesMixed, asked_of_accelerator, pretended_accelerator
from refocus.model import networks
from refocus.model.checkpoint import ModelPackage
from refocus.model.explanation import explain
from refocus.model.golden import golden_output
from refocus.model.normalisation import estimate
from refocus.model.restore import LoadedModel, restore
from refocus.model.seen import SeenPlane
from refocus.model.specimen import Specimen


def _out_of_focus(side_px: int = 320) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    spots = (torch.rand(side_px, side_px, generator=generator) > 0.997).float()
    light = out_of_focus(torch.nn.functional.avg_pool2d(spots[None], 7, 1, 3)[0], 16.0).clamp_min(0.0)
    return (100 + torch.poisson(2000.0 * light / light.max(), generator=generator)).numpy().astype(np.uint16)


@pytest.mark.parametrize("name", ["fluorescence", "brightfield"])
def test_an_image_is_restored_and_explained_from_the_devices_own_memory(name: str) -> None:
    package = ModelPackage.bundled(name)
    image = _out_of_focus()
    if package.config.channels == 3:
        image = np.stack([3000 - image, 3000 - image // 2, 3000 - image // 3], axis=-1)
    plain = restore(image, package, device="cpu", precision="fp32", with_scale=True)
    golden = golden_output(package)
    with pretended_accelerator() as device:
        model = LoadedModel(package, device=device, precision="fp32")
        assert next(model.network.parameters()).device == device
        with asked_of_accelerator() as asked:
            planes = np.moveaxis(image, -1, 0) if image.ndim == 3 else image[None]
            model.estimated_blur(SeenPlane(Specimen.of(planes), estimate(planes), model.device), None)
        # The blur is estimated there, too.
        assert asked.operations > 100
        found = model.restore(image, with_scale=True)
        assert golden_output(package, model.network) == golden
        assert explain(image, model).deconvolved is not None
    # One processor computed both.
    assert np.array_equal(found.pixels, plain.pixels)
    assert found.scale is not None
    assert np.array_equal(found.scale, plain.scale)


def test_a_table_that_was_left_behind_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def left_behind(blur: torch.Tensor) -> torch.Tensor:
        samplings = torch.tensor([profile.sampling for profile in networks.PROFILES])
        return torch.cat([blur[:, :1], samplings[blur[:, 1:].to(torch.int64)]], 1)

    monkeypatch.setattr(networks, "blur_features", left_behind)
    package, image = ModelPackage.bundled("fluorescence_small"), _out_of_focus(128)
    restore(image, package, device="cpu", precision="fp32")
    with (
        pretended_accelerator() as device,
        pytest.raises(MemoriesMixed, match=r"aten.index.Tensor .* shapes \[\(20,\)"),
    ):
        restore(image, package, device=device, precision="fp32")


@pytest.mark.parametrize(
    "mix",
    [
        lambda ours, its: ours + its,
        lambda ours, its: torch.stack([ours, its]),
        lambda ours, its: torch.where(its > 0, its, ours),
        lambda ours, its: ours[its.long()],
        lambda ours, its: its.index_select(0, ours.long()),
        lambda ours, its: its.numpy(),
        lambda ours, its: np.asarray(its),
        lambda ours, its: torch.rand(3, device=its.device, generator=torch.Generator()),
        lambda ours, its: torch.poisson(its, generator=torch.Generator()),
        lambda ours, its: torch.rand(3, generator=torch.Generator(its.device)),
    ],
)
def test_what_an_accelerator_refuses_is_refused(mix: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
    with pretended_accelerator() as device:
        ours, its = torch.ones(3), torch.ones(3, device=device)
        with pytest.raises(MemoriesMixed):
            mix(ours, its)


def test_what_an_accelerator_does_is_done_and_its_gradients_come_home() -> None:
    with pretended_accelerator() as device:
        ours = torch.arange(3.0, requires_grad=True)
        its = ours.to(device) * torch.tensor(2.0)
        its = its[torch.tensor([0, 2])] + torch.ones_like(its)[:2]
        its[:1] = torch.zeros(1)
        assert (its.device, its.detach().cpu().device, ours.device) == (
            device,
            torch.device("cpu"),
            torch.device("cpu"),
        )
        assert its.detach().cpu().numpy().tolist() == [0.0, 5.0]
        its.sum().backward()
        assert ours.grad is not None
        assert ours.grad.tolist() == [0.0, 0.0, 2.0]
