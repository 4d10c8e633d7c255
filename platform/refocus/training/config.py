"""Everything that decides what a training run learns; where it runs is said elsewhere."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from refocus.model.networks import NetworkConfig
from refocus.optics.random_defocus import OpticsRange, RandomDefocus
from refocus.training.grain import USUAL_STRENGTH

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class LossWeights(BaseModel):
    """How much each term of :mod:`refocus.model.losses` counts; 0 leaves it out.

    The defaults are what the comparison in docs/networks.md ended with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_mse: Weight = 1.0
    harm: Weight = 1.0
    charbonnier: Weight = 0.0
    berhu: Weight = 0.0
    ssim: Weight = 0.5
    ms_ssim: Weight = 0.5
    fourier: Weight = 0.0
    light: Weight = 1.0
    scale: Weight = 0.05
    blur: Weight = 0.4
    adversarial: Weight = 0.0


class DiscriminatorConfig(BaseModel):
    """The second network of an adversarial recipe and its optimizer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: PositiveInt = 24
    learning_rate: PositiveFloat = 3e-5
    start_step: Annotated[int, Field(ge=0)] = 0


class TrainingConfig(BaseModel):
    """One recipe, in numbers.

    Parameters
    ----------
    name : str
        Of the recipe; goes into the model card.
    modality : {'fluorescence', 'brightfield', 'phase_contrast'}
    network : NetworkConfig
    initial_weights : str or None
        Where to start from: ``"bundled:NAME"``, a folder of a model package, or None for the identity.
    crop_px : int
        Side of what the network sees.
    zoom : (low, high)
        Sharp tiles and pairs are resampled by a factor drawn log-uniformly: objects of other sizes.
    grain_share : float
        Share of sharp tiles whose specimen is given texture down to the pixel, of `grain` relative strength. Soft and
        enlarged images have none, and a network that has seen no other takes it for noise.
    grain : (low, high)
        Standard deviation of the logarithm of what shines, or of what absorbs, drawn log-uniformly.
    batch_size : int
        Samples a step, over all workers together.
    batches_at_once : int
        Batches whose pairs are formed together on an accelerator, and what undoes their blur: it waits for each of
        thousands of operations, however many samples they are for. On the CPU they come one by one.
    steps : int
        Optimizer steps of the whole run.
    learning_rate, warmup_steps, final_learning_rate_share
        Linear warm-up, then a cosine down to the share.
    weight_decay : float
    ema_decay : float
        Of the averaged weights that are validated and shipped; it warms up with the step.
    clip_norm : float
        Largest norm of all gradients together.
    precision : {'bf16', 'fp32'}
        Of the network's arithmetic; weights, losses and optimizer stay in float32. GPUs that would have to emulate
        bf16 (before NVIDIA's Ampere) take fp32.
    compile : bool
        Run the network through torch.compile.
    seed : int
    checkpoint_interval_steps : int
    validation_tiles : int
        How many of the validation split's tiles are measured at each checkpoint, at most.
    optics : OpticsRange
    loss : LossWeights
    discriminator : DiscriminatorConfig or None
        Needed where `loss.adversarial` is above 0.
    renormalise_jitter : float
        Spread (in natural logarithms) of the scale that crops are divided by, so that a crop looks to the network
        like a part of any whole image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    modality: Literal["fluorescence", "brightfield", "phase_contrast"] = "fluorescence"
    network: NetworkConfig = NetworkConfig()
    initial_weights: str | None = None
    crop_px: Annotated[int, Field(ge=32)] = 160
    zoom: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.25)
    grain_share: Share = 0.0
    grain: tuple[PositiveFloat, PositiveFloat] = USUAL_STRENGTH
    batch_size: PositiveInt = 8
    batches_at_once: PositiveInt = 4
    steps: PositiveInt = 20000
    learning_rate: PositiveFloat = 5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 300
    final_learning_rate_share: Share = 0.01
    weight_decay: Weight = 0.01
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    clip_norm: PositiveFloat = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    checkpoint_interval_steps: PositiveInt = 500
    validation_tiles: PositiveInt = 256
    optics: OpticsRange = OpticsRange()
    loss: LossWeights = LossWeights()
    discriminator: DiscriminatorConfig | None = None
    renormalise_jitter: Weight = 0.25

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom is {self.zoom}; expected low <= high.")
        if self.grain[0] > self.grain[1]:
            raise ValueError(f"grain is {self.grain}; expected low <= high.")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps} of {self.steps} steps; nothing is left to train.")
        if (self.loss.adversarial > 0) != (self.discriminator is not None):
            raise ValueError(
                f"loss.adversarial is {self.loss.adversarial} and discriminator is "
                f"{'given' if self.discriminator else 'missing'}; an adversarial recipe needs both."
            )
        return self

    def random_defocus(self, device: str = "cpu") -> RandomDefocus:
        """Build the blur that sharp tiles get. Tables are computed: build once, not every step."""
        modality = "brightfield" if self.modality == "phase_contrast" else self.modality
        return RandomDefocus(self.optics, crop_px=self.crop_px, modality=modality, device=device)

    @property
    def absorbing(self) -> bool:
        """Whether specimens take light away, so that networks see the complement of an image."""
        return self.modality == "brightfield"

    @property
    def window_px(self) -> int:
        """Side of the tiles that fill a crop with its margin at every zoom; smaller ones are mirrored."""
        margin = math.ceil(1.15 * self.optics.largest_blur_px) + 4
        return math.ceil((self.crop_px + 2 * margin) / self.zoom[0])

    def learning_rate_at(self, step: int) -> float:
        """Share of `learning_rate` at this optimizer step, 0-based."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = min((step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1), 1.0)
        low = self.final_learning_rate_share
        return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
