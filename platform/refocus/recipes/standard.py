"""The recipes that Refocus recommends; what they were compared with is in docs/networks.md."""

from __future__ import annotations

from typing import Any

from refocus.model.checkpoint import bundled_names
from refocus.model.networks import NetworkConfig
from refocus.optics.random_defocus import OpticsRange
from refocus.training.config import TrainingConfig

#: Noise that the inverse filters reckon with, (floor, slope in px): hardly any, some, much; see docs/networks.md.
NOISE_LEVELS = ((3e-4, 60.0), (2e-3, 40.0), (1.2e-2, 20.0))


def _network(**sizes: Any) -> NetworkConfig:
    return NetworkConfig(noise_levels=NOISE_LEVELS, deconvolution=True, **sizes)


#: Reaches 10 um at NA 0.75 and 0.325 um pixels with a little to spare; what lies beyond is the gate's matter. Tilt,
#: haze and aberrations in few samples, and none beyond the range: they teach a network to distrust deconvolution where
#: it is right. Noise of processed images in many: taken for white, it passes for detail.
BROAD_OPTICS = OpticsRange(
    blur_radius_px=(0.0, 38.0),
    in_focus_share=0.15,
    near_focus_share=0.15,
    tilt_share=0.07,
    haze_share=0.07,
    spherical_waves=0.015,
    processed_share=0.3,
)


def fluorescence() -> TrainingConfig:
    """The default for fluorescence: one channel at a time, for an accelerator or many hours of CPU."""
    return TrainingConfig(
        name="fluorescence",
        modality="fluorescence",
        network=_network(),
        crop_px=288,
        zoom=(0.5, 2.2),
        grain_share=0.35,
        batch_size=32,
        steps=100_000,
        warmup_steps=500,
        checkpoint_interval_steps=2000,
        optics=BROAD_OPTICS,
    )


def fluorescence_small() -> TrainingConfig:
    """Half the width of `fluorescence` and a quarter of its weights, for machines without matrix units."""
    return fluorescence().model_copy(
        update={
            "name": "fluorescence_small",
            "network": _network(widths=(16, 32, 64, 96)),
        }
    )


def brightfield() -> TrainingConfig:
    """Stained sections in RGB: colours share one defocus, and each is guided by the mean of all."""
    return fluorescence().model_copy(
        update={
            "name": "brightfield",
            "modality": "brightfield",
            "network": _network(channels=3, guided=True),
            "zoom": (0.5, 1.25),
        }
    )


def smoke() -> TrainingConfig:
    """Two minutes on two CPU cores: continues from the bundled weights, or from nothing where none are bundled."""
    return fluorescence().model_copy(
        update={
            "name": "smoke",
            "initial_weights": "bundled:fluorescence" if "fluorescence" in bundled_names() else None,
            "crop_px": 128,
            "batch_size": 4,
            "steps": 200,
            "learning_rate": 3e-5,
            "warmup_steps": 20,
            "ema_decay": 0.99,
            "checkpoint_interval_steps": 100,
            "validation_tiles": 32,
        }
    )
