"""From a trainer in the middle of its run to a model package that could be served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import refocus
from refocus.model.checkpoint import ModelPackage, PackageConfig
from refocus.training.config import TrainingConfig
from refocus.training.loop import Trainer
from refocus.training.runs import RunRecord


def package_config(config: TrainingConfig) -> PackageConfig:
    """Return what serving must know of a network that `config` trains."""
    return PackageConfig(
        # The model is named after what it is for, the recipe after how it was made: recipes compete for one alias.
        name=config.modality,
        modality=config.modality,
        network=config.network,
        largest_blur_px=config.optics.blur_radius_px[1],
        pixel_size_um=config.optics.pixel_size_um,
        numerical_aperture=config.optics.numerical_aperture,
        normalisation="percentiles-99-0.2" if config.absorbing else "percentiles-1-99.8",
    )


def package_of(trainer: Trainer, record: RunRecord, metrics: Mapping[str, Any]) -> ModelPackage:
    """Return the averaged weights with a card that says where they come from."""
    package = ModelPackage.of(trainer.averaged, package_config(record.config))
    card = {
        "model": record.config.name,
        "recipe": record.recipe,
        "run": record.name,
        "dataset": record.dataset,
        "seed": record.config.seed,
        "initial_weights": record.config.initial_weights,
        "step": trainer.step,
        "steps": record.config.steps,
        "samples_seen": trainer.samples_seen,
        "refocus_version": refocus.__version__,
        "commit": record.commit,
        "validation": {
            name.removeprefix("validation_"): value for name, value in metrics.items() if name.startswith("validation_")
        },
        "limits": "For research; not a diagnostic device. Fine detail beyond what defocus leaves is a prediction.",
    }
    return ModelPackage(package.config, package.weights, card)
