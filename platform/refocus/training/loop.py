"""The training loop in plain torch: batches go in, metrics come out.

It knows nothing of Ray, of files or of where batches come from. A script drives it as a Ray worker does::

    trainer = Trainer(config, device="cuda")
    for epoch in itertools.count():
        for step in trainer.run(batches(epoch)):      # ends with the batches or with the last step
            print(step.step, step.loss)
        if trainer.finished:
            break
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from refocus.data.batches import TileBatch
from refocus.errors import ModelUnfit, NonFiniteLoss
from refocus.model import losses
from refocus.model.blur_estimate import with_blur
from refocus.model.checkpoint import ModelPackage
from refocus.model.deconvolution import RichardsonLucy
from refocus.model.discriminator import Discriminator
from refocus.model.inverse_filters import InverseFilters
from refocus.model.networks import NetworkConfig, Prediction, RefocusNetwork, build_network, guided_start
from refocus.model.restore import has_native_bf16
from refocus.training.config import TrainingConfig
from refocus.training.outcomes import StepMetrics, ValidationSums
from refocus.training.pairs import PairMaker, Pairs

#: So many batches in a row without a finite gradient are no longer a matter of the data.
PATIENCE_WITH_BATCHES = 4


class Trainer:
    """A network, its optimizer, its averaged twin, and where in the schedule they are.

    Parameters
    ----------
    config : TrainingConfig
    device : torch.device or str
    network : Module, optional
        To be trained; may be wrapped for data-parallel training already. Built from `config` (seeded by
        `config.seed`, so that ranks start equal) where not given.
    distributed : bool
        Wrap the networks in DistributedDataParallel; the process group must exist.
    world_size : int
        Over how many ranks `config.batch_size` is divided, for `local_batch_size`.

    Attributes
    ----------
    batches_at_once : int
        Batches whose pairs are formed together: those of the recipe on an accelerator, one on the CPU.
    samples_seen : int
        Of all ranks together, which take batches of one size; ranks of another number may have seen the first of them.

    Raises
    ------
    ConfigurationError
        If recipe and optics do not fit together.
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        device: torch.device | str = "cpu",
        network: nn.Module | None = None,
        distributed: bool = False,
        world_size: int = 1,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        # An accelerator without units for bf16 emulates it, slower than float32.
        self._bf16 = config.precision == "bf16" and (self.device.type == "cpu" or has_native_bf16(self.device))
        self.world_size = world_size
        self.local_batch_size = max(1, config.batch_size // world_size)
        self.batches_at_once = 1 if self.device.type == "cpu" else config.batches_at_once
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            built = network if network is not None else initial_network(config)
            critic = (
                Discriminator(config.network.channels, config.discriminator.width) if config.discriminator else None
            )
        self.network = _placed(built, self.device, distributed)
        self.discriminator = _placed(critic, self.device, distributed) if critic is not None else None
        self.optimizer = _adamw(self.network, config.learning_rate, config.weight_decay)
        self.discriminator_optimizer = (
            _adamw(self.discriminator, config.discriminator.learning_rate, 0.0)
            if self.discriminator is not None and config.discriminator is not None
            else None
        )
        self.averaged: RefocusNetwork = copy.deepcopy(unwrapped(self.network)).requires_grad_(False).eval()
        self.forward = _compiled(self.network) if config.compile else self.network
        self.pairs = PairMaker(config, device=self.device)
        self.validation_pairs = PairMaker(config, device=self.device, augment=False)
        self.step = 0
        self.samples_seen = 0
        self.batches_left_out = 0
        self._left_out_in_a_row = 0

    @property
    def finished(self) -> bool:
        """Whether all steps of the recipe are done."""
        return self.step >= self.config.steps

    def run(
        self,
        batches: Iterable[TileBatch],
        *,
        until_step: int | None = None,
        trained: Callable[[TileBatch], None] | None = None,
    ) -> Iterator[StepMetrics]:
        """Train on `batches`, one optimizer step each, and yield what happened after each.

        A batch whose gradient is not finite is left out and counted in `batches_left_out`: one damaged tile must not
        end a run of days. Every rank sees the same summed gradient, so all ranks leave out the same batch.

        Parameters
        ----------
        batches : iterable of TileBatch
            On any device. Some may be taken before their turn, never more than there are steps left.
        until_step : int, optional
            Stop when this many steps have been done; `config.steps` is always the end.
        trained : callable, optional
            Told each batch once it has been trained on or left out.

        Yields
        ------
        StepMetrics

        Raises
        ------
        NonFiniteLoss
            If that happens to `PATIENCE_WITH_BATCHES` batches in a row; weights, averages and optimizer are as
            before the first of them.
        """
        end = min(self.config.steps, until_step if until_step is not None else self.config.steps)
        source = iter(batches)
        while self.step < end:
            waiting_since = time.perf_counter()
            group = list(islice(source, min(self.batches_at_once, end - self.step)))
            if not group:
                return
            waited_s = (time.perf_counter() - waiting_since) / len(group)
            for batch, pairs, formed_s in self._formed(group):
                try:
                    metrics = self._step(batch, pairs, waited_s, formed_s)
                except NonFiniteLoss:
                    self.batches_left_out += 1
                    self._left_out_in_a_row += 1
                    if self._left_out_in_a_row >= PATIENCE_WITH_BATCHES:
                        raise
                    metrics = None
                if trained is not None:
                    trained(batch)
                if metrics is not None:
                    self._left_out_in_a_row = 0
                    yield metrics

    def train_step(self, batch: TileBatch, *, data_wait_s: float = 0.0) -> StepMetrics:
        """Take one optimizer step (two where the recipe is adversarial) on one batch."""
        ((_, pairs, formed_s),) = self._formed([batch])
        return self._step(batch, pairs, data_wait_s, formed_s)

    def _formed(self, group: list[TileBatch]) -> Iterator[tuple[TileBatch, Pairs, float]]:
        """Each batch with its pairs, all formed at once, and its share of the seconds that this took."""
        started = time.perf_counter()
        pairs = self.pairs(TileBatch.joined(group))
        if len(group) > 1 and pairs.estimated_blur is not None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
                undone = unwrapped(self.network).undone(with_blur(pairs.image, pairs.estimated_blur))
            pairs = replace(pairs, undone=undone)
        each_s = (time.perf_counter() - started) / len(group)
        first = 0
        for batch in group:
            yield batch, pairs.rows(first, first + len(batch)), each_s
            first += len(batch)

    def _step(self, batch: TileBatch, pairs: Pairs, waited_s: float, formed_s: float) -> StepMetrics:
        started = time.perf_counter()
        rate = self.config.learning_rate * self.config.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.network.train()
        prediction = self._predict(self.forward, pairs)
        total, terms = self._loss(prediction, pairs)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        loss, gradient_norm = float(total.detach()), float(norm)
        # The gradient is summed over ranks and the loss is not: what every rank must agree on is asked of the gradient.
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteLoss(
                f"step {self.step + 1}: loss is {loss} and gradient norm {gradient_norm} "
                f"({', '.join(f'{k} {float(v.detach()):.3g}' for k, v in terms.items())}); tiles in the batch: "
                f"{batch.index.tolist()}. Weights are as before this step. Look at those tiles, or lower "
                "learning_rate or clip_norm and start a new run; this one can be resumed as it is."
            )
        self.optimizer.step()
        if self.discriminator is not None:
            terms["discriminator"] = self._discriminator_step(prediction.image.detach(), pairs.target)
        self.step += 1
        self.samples_seen += len(batch) * self.world_size
        self._average()
        return StepMetrics(
            step=self.step,
            loss=loss,
            terms={name: float(value.detach()) for name, value in terms.items()},
            samples=len(batch),
            gradient_norm=gradient_norm,
            learning_rate=rate,
            data_wait_s=waited_s,
            pairs_s=formed_s,
            step_s=time.perf_counter() - started,
        )

    @torch.no_grad()
    def validate(self, batches: Iterable[TileBatch]) -> ValidationSums:
        """Measure the averaged weights on `batches`; defocus follows from tile and seed, so repeats agree.

        PSNR and SSIM refer to the target's own range and are means over samples.
        """
        result = ValidationSums(sums=dict.fromkeys(ValidationSums.NAMES, 0.0))
        for batch in batches:
            pairs = self.validation_pairs(batch)
            prediction = self._predict(self.averaged, pairs)
            for row in range(len(batch)):
                one = Prediction(*(field[row : row + 1] for field in prediction))
                pair = pairs.row(row)
                total, _ = self._loss(one, pair, adversarial=False)
                known = bool(pair.blur_radius_px.isfinite().all())
                values = {
                    "loss": total,
                    "psnr_db": _psnr_db(one.image, pair.target),
                    "psnr_input_db": _psnr_db(pair.image, pair.target),
                    "ssim": losses.ms_ssim(one.image, pair.target)[0],
                    "ssim_input": losses.ms_ssim(pair.image, pair.target)[0],
                    "signal_ratio": one.image.sum() / pair.target.sum().clamp_min(1e-6),
                    "blur_error_px": (one.blur_radius_px.mean() - pair.blur_radius_px).abs().sum() if known else 0.0,
                }
                for name, value in values.items():
                    result.sums[name] += float(value)
                result.samples += 1
        return result

    @torch.no_grad()
    def examples(self, batch: TileBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return (defocused, restored by the averaged weights, in focus) of a batch, on the CPU, for people to see."""
        pairs = self.validation_pairs(batch)
        restored = self._predict(self.averaged, pairs).image
        shown = [image.float().cpu() for image in (pairs.image, restored, pairs.target)]
        # Networks see what specimens absorb; people expect them dark on bright.
        before, after, truth = [1.0 - image for image in shown] if self.config.absorbing else shown
        return before, after, truth

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs, on the device it is on; `load_state_dict` takes it back.

        Weights are those of the bare networks, whether or not they are wrapped here or there.
        """
        state: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "step": self.step,
            "samples_seen": self.samples_seen,
            "batches_left_out": self.batches_left_out,
            "network": unwrapped(self.network).state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            state["discriminator"] = unwrapped(self.discriminator).state_dict()
            state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of an earlier trainer.

        Raises
        ------
        ModelUnfit
            If it came from another architecture, or lacks a network that this recipe trains.
        """
        # What an older checkpoint does not name was added later, and off.
        theirs = NetworkConfig().model_dump(mode="json") | state["config"]["network"]
        ours = self.config.network.model_dump(mode="json")
        different = [f"{k} {theirs[k]} there, {v} here" for k, v in ours.items() if theirs[k] != v]
        if different:
            raise ModelUnfit(
                f"the checkpoint is of another network: {'; '.join(different)}. "
                "Resume with the recipe that wrote it, or start a new run."
            )
        if self.discriminator is not None and "discriminator" not in state:
            raise ModelUnfit("the checkpoint has no discriminator and this recipe is adversarial; start a new run.")
        unwrapped(self.network).load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        _go_on(self.optimizer, state["optimizer"])
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            unwrapped(self.discriminator).load_state_dict(state["discriminator"])
            _go_on(self.discriminator_optimizer, state["discriminator_optimizer"])
        torch.set_rng_state(state["torch_rng"].cpu())
        self.step = int(state["step"])
        self.samples_seen = int(state["samples_seen"])
        self.batches_left_out = int(state["batches_left_out"])

    def _predict(self, network: Any, pairs: Pairs) -> Prediction:
        blur = pairs.estimated_blur
        image = pairs.image if blur is None else with_blur(pairs.image, blur)
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            return network(image, pairs.undone) if pairs.undone else network(image)

    def _loss(
        self, prediction: Prediction, pairs: Pairs, *, adversarial: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        weights, image, target = self.config.loss, prediction.image, pairs.target
        terms: dict[str, Tensor] = {}
        for name, term in (
            ("log_mse", losses.log_mse),
            ("charbonnier", losses.charbonnier),
            ("berhu", losses.berhu),
            ("fourier", losses.fourier),
            ("light", losses.light),
        ):
            if getattr(weights, name):
                terms[name] = term(image, target)
        if weights.harm:
            terms["harm"] = losses.harm(image, target, pairs.image)
        if weights.ssim or weights.ms_ssim:
            fine, all_scales = losses.ms_ssim(image, target)
            terms["ssim"], terms["ms_ssim"] = 1.0 - fine, 1.0 - all_scales
        # Heads always take part, if with weight 0: data-parallel training waits for every parameter's gradient.
        terms["scale"] = losses.laplace_nll(image, target, prediction.log_scale)
        terms["blur"] = losses.blur_error(prediction, pairs.blur_radius_px)
        critic = self.config.discriminator
        if adversarial and self.discriminator is not None and critic is not None and self.step >= critic.start_step:
            # The bare module with detached weights: no gradient for it, and no data-parallel bookkeeping to upset.
            bare = unwrapped(self.discriminator)
            frozen = {name: value.detach() for name, value in bare.named_parameters()}
            terms["adversarial"] = losses.lsgan_generator(torch.func.functional_call(bare, frozen, (image,)))
        total = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
        return total, terms

    def _discriminator_step(self, refocused: Tensor, sharp: Tensor) -> Tensor:
        assert self.discriminator is not None
        assert self.discriminator_optimizer is not None
        # One pass over both: two passes through a data-parallel module before one backward are not supported.
        scores = self.discriminator(torch.cat([sharp, refocused]))
        of_sharp, of_refocused = scores.chunk(2)
        loss = losses.lsgan_discriminator(of_sharp, of_refocused)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.config.clip_norm)
        self.discriminator_optimizer.step()
        return loss

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        ours = list(unwrapped(self.network).parameters())
        torch._foreach_lerp_(list(self.averaged.parameters()), ours, 1.0 - decay)


def initial_network(config: TrainingConfig) -> RefocusNetwork:
    """Build the recipe's network with the weights that it starts from.

    Raises
    ------
    ModelMissing
        If `initial_weights` names nothing.
    ModelUnfit
        If they are of another network.
    """
    network = build_network(config.network)
    if config.initial_weights is not None:
        kind, _, name = config.initial_weights.partition(":")
        package = ModelPackage.bundled(name) if kind == "bundled" else ModelPackage.load(config.initial_weights)
        given, wanted, weights = package.config.network, config.network, package.weights
        if wanted.guided and given == wanted.model_copy(update={"channels": 1, "guided": False}):
            weights = guided_start(network, weights)
        elif given != wanted:
            raise ModelUnfit(
                f"initial_weights {config.initial_weights!r} is a network {given}, and recipe "
                f"{config.name!r} trains {wanted}. Take the network from the package, or start from None."
            )
        network.load_state_dict(weights)
    return network


def unwrapped(module: nn.Module) -> Any:
    """The bare module below DistributedDataParallel, or the module itself."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def _placed(module: nn.Module, device: torch.device, distributed: bool) -> nn.Module:
    if isinstance(module, DistributedDataParallel):
        return module
    module = module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not distributed:
        return module
    return DistributedDataParallel(
        module, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
    )


def _compiled(network: nn.Module) -> Any:
    """Compile all but what undoes the blur.

    That takes another way for each blur, so it would be compiled anew for each batch, and then no more at all.
    """
    for module in network.modules():
        if isinstance(module, (InverseFilters, RichardsonLucy)):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign, no-untyped-call]
    return torch.compile(network)


def _adamw(module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that leaves biases and norms alone."""
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99))


def _go_on(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Continue from an optimizer's state, each mean laid out in memory as its weight is.

    Files keep no layouts, and accelerators update all weights at once only where layouts agree.
    """
    optimizer.load_state_dict(dict(state))
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter).copy_(value)


def _psnr_db(image: Tensor, target: Tensor) -> Tensor:
    span = (target.max() - target.min()).clamp_min(1e-6)
    return 10.0 * torch.log10(span.square() / (image - target).square().mean().clamp_min(1e-12))
