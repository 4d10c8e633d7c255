#!/usr/bin/env python
"""What each choice of a recipe is worth: variants trained from nothing on the same batches, measured side by side.

    tests/benchmarks/training/variants.py DATA/sharp
    tests/benchmarks/training/variants.py DATA/sharp --steps 6000 --variant "a Fourier term: loss.fourier=2"

All start from `fluorescence_small` in small crops, so that a variant takes some seven minutes on one free core. Images
are those of the train split; what was learnt is measured on the calibration split, so that choices do not use up the
validation split. Which tile, depth and noise a step sees follows from its number alone. "Another seed" is the
yardstick: differences as small as its are chance. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from refocus import recipes
from refocus.data.batches import BatchAssembler, TileBatch
from refocus.data.splits import Split
from refocus.data.tiles import Tile
from refocus.model.checkpoint import ModelPackage
from refocus.model.metrics import psnr, ssim
from refocus.model.normalisation import estimate
from refocus.training.config import TrainingConfig
from refocus.training.evaluate import commit, machine
from refocus.training.loop import Trainer
from refocus.training.methods import network_method
from refocus.training.overrides import with_overrides
from refocus.training.package import package_config
from refocus.training.scenes import SMALLEST_FIELD_PX, SceneSettings, SharpImage, scenes_of
from refocus.training.validation import evenly, sharp_images_in

#: What makes a run short; the rest is the recipe's.
SHORT = ("crop_px=160", "batch_size=4", "warmup_steps=100", "learning_rate=8e-4", "ema_decay=0.995", "compile=false")
DEEPER = ("network.encoder_blocks=[2, 2, 4]", "network.decoder_blocks=[2, 2, 4]", "network.middle_blocks=6")
VARIANTS: dict[str, tuple[str, ...]] = {
    "the recipe": (),
    "another seed": ("seed=1",),
    "loss: L1 for the log error": ("loss.log_mse=0", "loss.charbonnier=10"),
    "loss: and a Fourier term": ("loss.fourier=5",),
    "loss: and lightly adversarial": ("loss.adversarial=0.02", "discriminator={width: 16, learning_rate: 1e-4}"),
    "loss: no harm": ("loss.harm=0",),
    "loss: no SSIM": ("loss.ssim=0", "loss.ms_ssim=0"),
    "network: twice the width": ("network.widths=[32, 64, 128, 192]",),
    "network: twice the depth": DEEPER,
    "network: NAFNet's blocks": ("network.architecture=nafnet",),
    "network: no Richardson-Lucy": ("network.deconvolution=false",),
    "network: neither": ("network.deconvolution=false", "network.noise_levels=[]"),
}
DEPTHS_UM = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of sharp images, as ingest would split them")
    parser.add_argument("--recipe", default="fluorescence_small")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--specimens", type=int, default=24, help="to measure on, at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variant", action="append", default=[], help='"NAME: KEY=VALUE; ..." beside the recipe')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = with_overrides(recipes.get(options.recipe), [*SHORT, f"steps={options.steps}"])
    variants = {"the recipe": ()} | dict(map(named, options.variant)) if options.variant else VARIANTS
    configs = {name: with_overrides(base, changes) for name, changes in variants.items()}

    def images(split: Split) -> list[SharpImage]:
        return [i for i in sharp_images_in(options.images, split) if i.modality == base.modality and i.holds_a_field]

    tiles = [as_tile(image) for image in images("train")]
    held_out = evenly(images("calibration"), options.specimens)
    print(
        f"{len(tiles)} images, {options.steps} steps of {base.batch_size} crops; {len(held_out)} specimens measured\n"
    )
    print("gain (dB; SSIM) at   " + "".join(f"{depth:>14g} um" for depth in DEPTHS_UM) + "   light (%)   s a step")
    rows = {name: measured(config, tiles, held_out, name) for name, config in configs.items()}
    record = {"machine": machine(), "commit": commit(), "recipe": options.recipe, "steps": options.steps}
    print(json.dumps({**record, "variants": variants, "rows": rows}))


def named(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, changes = text.partition(":")
    return name.strip(), tuple(change.strip() for change in changes.split(";"))


def as_tile(image: SharpImage) -> Tile:
    """A whole image as a tile, normalised as ingest does."""
    constants = estimate(image.pixels)
    return Tile(
        source=image.source,
        specimen=image.specimen,
        modality=image.modality,
        kind="sharp",
        pixels=np.ascontiguousarray(image.pixels),
        target=None,
        offset=constants.offset,
        scale=constants.scale,
        y_px=0,
        x_px=0,
    )


def batches(config: TrainingConfig, tiles: Sequence[Tile]) -> Iterator[TileBatch]:
    """Endless batches, the same for every variant: each is an epoch of its own."""
    for epoch in itertools.count():
        assembler = BatchAssembler(window_px=config.window_px, channels=config.network.channels, seed=0, epoch=epoch)
        yield assembler.assemble(random.Random(epoch).choices(tiles, k=config.batch_size))


def measured(
    config: TrainingConfig, tiles: Sequence[Tile], held_out: Sequence[SharpImage], name: str
) -> dict[str, object]:
    """Train a variant and measure its averaged weights, unrestrained."""
    trainer = Trainer(config)
    step_s = statistics.median([metrics.step_s for metrics in trainer.run(batches(config, tiles))])
    method = network_method(ModelPackage.of(trainer.averaged, package_config(config)), check=False)
    gains: dict[float, list[tuple[float, float, float]]] = {depth: [] for depth in DEPTHS_UM}
    settings = SceneSettings(defocus_um=DEPTHS_UM, photons=(1500.0,), field_px=SMALLEST_FIELD_PX)
    for scene in scenes_of(held_out, settings):
        found = method(scene.image).pixels
        decibels = psnr(found, scene.truth) - psnr(scene.image, scene.truth)
        likeness = ssim(found, scene.truth) - ssim(scene.image, scene.truth)
        gains[scene.defocus_um].append((decibels, likeness, float(found.sum() / scene.image.sum())))
    means = np.array([np.mean(rows, 0) for rows in gains.values()])
    light = float(100 * (means[:, 2] - 1.0)[np.abs(means[:, 2] - 1.0).argmax()])
    said = "".join(f"{decibels:+8.2f} {likeness:+.3f}  " for decibels, likeness, _ in means)
    print(f"{name:32}{said}{light:+8.2f}{step_s:11.2f}", flush=True)
    return {
        "psnr_db": means[:, 0].round(3).tolist(),
        "ssim": means[:, 1].round(4).tolist(),
        "light_percent": round(light, 3),
        "step_s": round(step_s, 3),
    }


if __name__ == "__main__":
    main()
