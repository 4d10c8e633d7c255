"""The loop: it learns, resumes to the bit, keeps ranks equal and stops at what is not finite."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from refocus.data.batches import TileBatch
from refocus.errors import ConfigurationError, ModelUnfit, NonFiniteLoss
from refocus.model.checkpoint import ModelPackage, PackageConfig
from refocus.model.networks import NetworkConfig, build_network
from refocus.optics.random_defocus import OpticsRange
from refocus.training.config import DiscriminatorConfig, LossWeights, TrainingConfig
from refocus.training.loop import Trainer
from refocus.training.outcomes import ValidationSums
from refocus.training.state import load_state, save_state

TINY = NetworkConfig(widths=(8, 12), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1)
UNDOING = {"noise_levels": ((2e-3, 40.0),), "deconvolution": True}


def recipe(**more: Any) -> TrainingConfig:
    fields: dict[str, Any] = {
        "name": "test",
        "network": TINY,
        "crop_px": 32,
        "batch_size": 4,
        "steps": 6,
        "warmup_steps": 1,
        "learning_rate": 2e-3,
        "precision": "fp32",
        "optics": OpticsRange(blur_radius_px=(0.0, 4.0), tilt_share=0.0, near_focus_share=0.0),
    }
    return TrainingConfig(**(fields | more))


def batch(number: int, size: int = 4, channels: int = 1) -> TileBatch:
    """Random blobs, half of them sharp tiles and half measured pairs."""
    generator = torch.Generator().manual_seed(number)
    noise = torch.rand(size, channels, 72, 72, generator=generator)
    sharp = torch.nn.functional.avg_pool2d(noise, 5, 1, 2)
    sharp = ((sharp - 0.4) / 0.2).clamp_min(0)
    is_sharp = torch.arange(size) % 2 == 0
    defocused = torch.nn.functional.avg_pool2d(sharp, 7, 1, 3)
    return TileBatch(
        pixels=torch.where(is_sharp.reshape(-1, 1, 1, 1), sharp, defocused),
        target=sharp,
        is_sharp=is_sharp,
        blur_radius_px=torch.where(is_sharp, torch.tensor(0.0), torch.tensor(float("nan"))),
        pixel_size_um=torch.full((size,), float("nan")),
        index=torch.arange(size) + 1000 * number,
        epoch=torch.zeros(size, dtype=torch.int64),
    )


def batches(start: int, count: int) -> Iterator[TileBatch]:
    return (batch(number) for number in range(start, start + count))


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([value.flatten() for value in trainer.state_dict()["network"].values()])


def test_a_run_takes_its_steps_and_no_more() -> None:
    trainer = Trainer(recipe())
    steps = [m.step for m in trainer.run(batches(0, 50))]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert trainer.finished
    assert trainer.samples_seen == 24


@pytest.mark.parametrize(
    "network",
    [TINY, TINY.model_copy(update=UNDOING), TINY.model_copy(update=UNDOING | {"channels": 3, "guided": True})],
    ids=["sees no blur", "undoes the blur", "guided colours"],
)
def test_batches_formed_together_are_learnt_from_as_one_by_one(network: NetworkConfig) -> None:
    one_by_one, together = Trainer(recipe(network=network)), Trainer(recipe(network=network))
    together.batches_at_once = 3
    given = [batch(number, channels=network.channels) for number in range(5)]
    losses = [step.loss for step in one_by_one.run(given)]
    assert [step.loss for step in together.run(given)] == pytest.approx(losses, rel=1e-3)
    torch.testing.assert_close(weights(together), weights(one_by_one), rtol=1e-2, atol=1e-4)


def test_each_batch_is_told_once_it_had_its_turn_and_none_is_taken_beyond_the_last_step() -> None:
    damaged = batch(1)
    damaged.target[1, 0, 30, 30] = float("nan")
    left = iter([batch(0), damaged, *batches(2, 6)])
    trainer, told = Trainer(recipe(steps=4)), list[int]()
    trainer.batches_at_once = 3
    after = [list(told) for _ in trainer.run(left, trained=lambda done: told.append(int(done.index[0]) // 1000))]
    assert after == [[0], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert trainer.batches_left_out == 1
    assert int(next(left).index[0]) == 5000


def test_samples_are_counted_over_all_ranks_whatever_their_number_was_before() -> None:
    alone = Trainer(recipe())
    list(alone.run(batches(0, 2)))
    one_of_two = Trainer(recipe(), world_size=2)
    one_of_two.load_state_dict(alone.state_dict())
    list(one_of_two.run(batch(number, size=2) for number in range(4)))
    assert one_of_two.samples_seen == 2 * 4 + 4 * 2 * 2


def test_training_brings_unseen_images_closer_to_focus() -> None:
    optics = OpticsRange(
        blur_radius_px=(2.5, 4.5), in_focus_share=0.0, near_focus_share=0.0, haze_share=0.0, photons_at_peak=(1e4, 1e4)
    )
    network = TINY.model_copy(update={"noise_levels": ((2e-3, 40.0),)})
    trainer = Trainer(recipe(steps=40, learning_rate=5e-3, optics=optics, network=network, ema_decay=0.9))
    list(trainer.run(batches(0, 40)))
    means = trainer.validate([batch(900), batch(901)]).means()
    # Half of the samples are box blurs of 7 px, half optical blurs: the filter alone is worth more than this.
    assert means["psnr_db"] > means["psnr_input_db"] + 0.3
    assert abs(means["signal_ratio"] - 1) < 0.02  # what the platform promises on average


@pytest.mark.parametrize(
    "config",
    [
        recipe(),
        recipe(loss=LossWeights(adversarial=0.1), discriminator=DiscriminatorConfig(width=4)),
        recipe(precision="bf16"),
    ],
    ids=["plain", "adversarial", "bf16"],
)
def test_a_resumed_run_ends_with_the_same_weights_to_the_bit(config: TrainingConfig, tmp_path: Path) -> None:
    whole = Trainer(config)
    list(whole.run(batches(0, 6)))
    first = Trainer(config)
    list(first.run(batches(0, 3)))
    save_state(first.state_dict(), tmp_path)
    second = Trainer(config)
    second.load_state_dict(load_state(tmp_path))
    assert second.step == 3
    list(second.run(batches(3, 3)))
    assert torch.equal(weights(whole), weights(second))
    for ours, theirs in zip(whole.averaged.parameters(), second.averaged.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_resumed_optimizer_lays_its_means_out_as_the_weights_are(tmp_path: Path) -> None:
    config = recipe(discriminator=DiscriminatorConfig(width=4), loss=LossWeights(adversarial=0.1))
    first, second = Trainer(config), Trainer(config)
    list(first.run(batches(0, 1)))
    save_state(first.state_dict(), tmp_path)
    second.load_state_dict(load_state(tmp_path))
    for optimizer in (second.optimizer, second.discriminator_optimizer):
        assert optimizer is not None
        means = [(p, s["exp_avg"], s["exp_avg_sq"]) for p, s in optimizer.state.items()]
        assert any(weight.is_contiguous(memory_format=torch.channels_last) for weight, *_ in means if weight.ndim == 4)
        assert all(each.stride() == weight.stride() for weight, *both in means for each in both)


def test_a_compiled_network_is_compiled_once_for_all_blurs(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    real = torch.compile
    # What is counted are the graphs that would be compiled; turning them into machine code takes minutes.
    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend="eager"))
    network = TINY.model_copy(update={"noise_levels": ((2e-3, 40.0),), "deconvolution": True})
    config = recipe(network=network, optics=OpticsRange(blur_radius_px=(6.0, 20.0)))
    compiled, plain = Trainer(config.model_copy(update={"compile": True})), Trainer(config)
    list(compiled.run(batches(0, 1)))
    graphs = counters["stats"]["unique_graphs"]
    losses = [metrics.loss for metrics in compiled.run(batches(1, 3))]
    assert counters["stats"]["unique_graphs"] == graphs > 0
    list(plain.run(batches(0, 1)))
    assert losses == [metrics.loss for metrics in plain.run(batches(1, 3))]


def test_a_loss_that_is_not_finite_stops_and_names_step_and_tiles() -> None:
    trainer = Trainer(recipe())
    list(trainer.run(batches(0, 2)))
    before = weights(trainer)
    bad = batch(5)
    bad.pixels[1] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"step 3: .*tiles in the batch: \[5000, 5001"):
        trainer.train_step(bad)
    assert trainer.step == 2
    assert torch.equal(weights(trainer), before)
    assert trainer.train_step(batch(3)).step == 3


def test_a_batch_that_is_not_finite_is_left_out_and_counted_and_four_in_a_row_end_the_run() -> None:
    def stream(bad: set[int]) -> Iterator[TileBatch]:
        for number in range(12):
            one = batch(number)
            if number in bad:
                one.pixels[1] = float("nan")
            yield one

    trainer, undisturbed = Trainer(recipe()), Trainer(recipe())
    assert [m.step for m in trainer.run(stream({1, 2, 3, 6}))] == [1, 2, 3, 4, 5, 6]
    assert trainer.batches_left_out == 4
    list(undisturbed.run(batch(number) for number in (0, 4, 5, 7, 8, 9)))
    assert torch.equal(weights(trainer), weights(undisturbed))

    stuck = Trainer(recipe())
    with pytest.raises(NonFiniteLoss, match="step 2:"):
        list(stuck.run(stream({1, 2, 3, 4})))


def test_a_checkpoint_of_another_network_is_refused_by_name() -> None:
    other = Trainer(recipe(network=TINY.model_copy(update={"widths": (8, 16)})))
    with pytest.raises(ModelUnfit, match=r"widths \[8, 16\] there, \[8, 12\] here"):
        Trainer(recipe()).load_state_dict(other.state_dict())


def test_a_checkpoint_from_before_an_option_existed_goes_on() -> None:
    trainer = Trainer(recipe())
    older = trainer.state_dict()
    del older["config"]["network"]["guided"]
    Trainer(recipe()).load_state_dict(older)
    coloured = TINY.model_copy(update={"channels": 3, "guided": True})
    with pytest.raises(ModelUnfit, match="guided False there, True here"):
        Trainer(recipe(network=coloured)).load_state_dict(older)


def test_an_adversarial_run_trains_both_networks_and_refuses_a_plain_checkpoint() -> None:
    config = recipe(loss=LossWeights(adversarial=0.1), discriminator=DiscriminatorConfig(width=4))
    trainer = Trainer(config)
    before = {k: v.clone() for k, v in trainer.state_dict()["discriminator"].items()}
    metrics = trainer.train_step(batch(0))
    assert {"adversarial", "discriminator"} <= metrics.terms.keys()
    after = trainer.state_dict()["discriminator"]
    assert any(not torch.equal(before[k], after[k]) for k in before)
    with pytest.raises(ModelUnfit, match="no discriminator"):
        Trainer(config).load_state_dict(Trainer(recipe()).state_dict())


def test_validation_repeats_to_the_bit_and_adds_over_ranks() -> None:
    trainer = Trainer(recipe())
    list(trainer.run(batches(0, 2)))
    whole = trainer.validate([batch(7), batch(8)])
    parts = trainer.validate([batch(7)]).as_tensor() + trainer.validate([batch(8)]).as_tensor()
    assert ValidationSums.from_tensor(parts).means() == pytest.approx(whole.means())
    assert whole.samples == 8
    assert ValidationSums().means() == {}


def test_batches_that_do_not_fit_the_recipe_are_refused() -> None:
    trainer = Trainer(recipe())
    with pytest.raises(ConfigurationError, match="3 channels"):
        trainer.train_step(batch(0, channels=3))
    with pytest.raises(ConfigurationError, match="windows are 72 x 72"):
        Trainer(recipe(crop_px=96)).train_step(batch(0))


def test_a_run_starts_from_given_weights_and_refuses_those_of_another_network(tmp_path: Path) -> None:
    torch.manual_seed(5)
    package = ModelPackage.of(
        build_network(TINY), PackageConfig(name="p", modality="fluorescence", network=TINY, largest_blur_px=4.0)
    )
    package.save(tmp_path)
    trainer = Trainer(recipe(initial_weights=str(tmp_path)))
    for name, value in trainer.state_dict()["network"].items():
        assert torch.equal(value, package.weights[name].float())
    coloured = TINY.model_copy(update={"channels": 3, "guided": True})
    started = Trainer(recipe(initial_weights=str(tmp_path), network=coloured)).state_dict()["network"]
    entrance = package.weights["trunk.entrance.weight"]
    assert torch.equal(started["trunk.entrance.weight"][:, : entrance.shape[1]], entrance.float())
    assert not started["trunk.entrance.weight"][:, entrance.shape[1] :].any()
    wider = TINY.model_copy(update={"middle_blocks": 2})
    with pytest.raises(ModelUnfit, match="Take the network from the package"):
        Trainer(recipe(initial_weights=str(tmp_path), network=wider))


def _rank(rank: int, address: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    config = recipe(loss=LossWeights(adversarial=0.1), discriminator=DiscriminatorConfig(width=4))
    trainer = Trainer(config, distributed=True, world_size=2)
    assert trainer.local_batch_size == 2
    list(trainer.run(batch(10 * step + rank, size=2) for step in range(3)))
    torch.save({k: v for k, v in trainer.state_dict().items() if k != "config"}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_with_different_data_keep_equal_weights_in_both_networks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    address = f"file://{tmp_path}/meeting"
    ranks = [context.Process(target=_rank, args=(r, address, str(tmp_path))) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    left, right = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for part in ("network", "averaged", "discriminator"):
        for name, value in left[part].items():
            assert torch.equal(value, right[part][name]), f"{part} {name}"
