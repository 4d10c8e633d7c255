"""A step's pairs, losses and gradients lie on the training device: nothing meets them that was left on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pretended import MemoriesMixed, pretended_accelerator
from refocus.data.batches import TileBatch
from refocus.model import losses
from refocus.model.checkpoint import ModelPackage
from refocus.model.networks import NetworkConfig
from refocus.optics.random_defocus import OpticsRange
from refocus.training import loop
from refocus.training.config import DiscriminatorConfig, LossWeights, TrainingConfig
from refocus.training.loop import Trainer
from refocus.training.package import package_config
from refocus.training.passes import PassPosition
from refocus.training.state import load_state, save_state

_SMALL: dict[str, Any] = {"widths": (8, 12), "encoder_blocks": (1,), "decoder_blocks": (1,), "middle_blocks": 1}
_UNDOING = NetworkConfig(**_SMALL, noise_levels=((2e-3, 40.0),), deconvolution=True)
#: Everything that is drawn for some samples is drawn for all.
_MUCH = OpticsRange(
    blur_radius_px=(12.0, 24.0), tilt_share=1.0, haze_share=1.0, vignetting_share=1.0, processed_share=1.0
)
_ALL_LOSSES = LossWeights(charbonnier=0.1, berhu=0.1, fourier=0.1)


def _recipe(**more: Any) -> TrainingConfig:
    fields = {"name": "test", "precision": "fp32", "steps": 6, "warmup_steps": 1, "batch_size": 3, "optics": _MUCH}
    return TrainingConfig.model_validate(fields | more)


RECIPES = {
    "all of the physics": _recipe(network=_UNDOING, crop_px=160, grain_share=1.0, loss=_ALL_LOSSES),
    "colours": _recipe(
        network=_UNDOING.model_copy(update={"channels": 3, "guided": True}), crop_px=64, modality="brightfield"
    ),
    "two networks": _recipe(
        network=NetworkConfig(**_SMALL),
        crop_px=64,
        discriminator=DiscriminatorConfig(width=4),
        loss=LossWeights(adversarial=0.1),
    ),
}


def _batch(config: TrainingConfig, number: int = 0) -> TileBatch:
    """A sharp tile, a measured pair and a grey sharp tile."""
    generator = torch.Generator().manual_seed(number)
    noise = torch.rand(3, config.network.channels, config.window_px, config.window_px, generator=generator)
    sharp = ((F.avg_pool2d(noise, 9, 1, 4) - 0.45) / 0.1).clamp_min(0.0)
    sharp[2] = sharp[2, :1]
    pixels = sharp.clone()
    pixels[1] = F.avg_pool2d(sharp[1], 7, 1, 3)
    unknown = torch.full((3,), float("nan"))
    is_sharp = torch.tensor([True, False, True])
    radius = torch.where(is_sharp, 0.0, unknown)
    return TileBatch(pixels, sharp, is_sharp, radius, unknown, torch.arange(3) + 10 * number, torch.zeros(3).long())


@pytest.mark.parametrize("config", RECIPES.values(), ids=RECIPES)
def test_a_run_trains_validates_and_resumes_in_the_devices_own_memory(config: TrainingConfig, tmp_path: Path) -> None:
    with pretended_accelerator() as device:
        first, second = Trainer(config, device=device), Trainer(config, device=device)
        # Formed together.
        list(first.run([_batch(config, 0), _batch(config, 3)]))
        assert all(p.device == device and p.grad is not None for p in first.network.parameters())
        measured = first.validate([_batch(config, 1)]).means()
        before, _, _ = first.examples(_batch(config, 1))
        assert before.numpy().shape == (3, config.network.channels, config.crop_px, config.crop_px)
        save_state(first.state_dict(), tmp_path)
        second.load_state_dict(load_state(tmp_path))
        assert second.validate([_batch(config, 1)]).means() == measured
        list(second.run([_batch(config, 2)]))
        assert second.step == 3


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_for_accelerators_that_have_units_for_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RECIPES["two networks"].model_copy(update={"precision": "bf16"})
    asked = []

    class Noted(torch.autocast):
        """The processor has none for another device."""

        def __init__(self, device: str, dtype: torch.dtype | None = None, *, enabled: bool = True) -> None:
            asked.append((device, dtype, enabled))
            super().__init__("cpu", enabled=False)

    monkeypatch.setattr(loop, "has_native_bf16", lambda device: native)
    with pretended_accelerator() as device:
        trainer = Trainer(config, device=device)
        batch = _batch(config)
        monkeypatch.setattr(torch, "autocast", Noted)
        trainer.train_step(batch)
    assert ("cuda", torch.bfloat16, native) in asked


def test_a_damaged_tile_costs_an_accelerator_one_batch() -> None:
    config = RECIPES["two networks"]
    damaged = _batch(config, 1)
    damaged.pixels[0, 0, 70, 70] = float("nan")
    with pretended_accelerator() as device:
        trainer = Trainer(config, device=device)
        steps = list(trainer.run([_batch(config, 0), damaged, _batch(config, 2)]))
    assert ([step.step for step in steps], trainer.batches_left_out) == ([1, 2], 1)


def test_a_window_that_was_left_behind_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RECIPES["two networks"]
    on_device = losses._gaussian_band
    monkeypatch.setattr(losses, "_gaussian_band", lambda size, device: on_device(size, torch.device("cpu")))
    Trainer(config).train_step(_batch(config))
    with pretended_accelerator() as device:
        trainer = Trainer(config, device=device)
        with pytest.raises(MemoriesMixed):
            trainer.train_step(_batch(config))


def test_weights_leave_the_device_for_a_package_and_tiles_for_a_checkpoint() -> None:
    config = RECIPES["two networks"]
    with pretended_accelerator() as device:
        trainer = Trainer(config, device=device)
        assert len(ModelPackage.of(trainer.averaged, package_config(config)).digest) == 64
        position = PassPosition()
        position.add(_batch(config).to(device))
        position.gather(rank=0, world_size=1, device=device)
        assert position.state_dict()["had"].numpy().tolist() == [0, 1, 2]
