"""The publication's method, as far as it is public."""

from __future__ import annotations

from refocus.model.networks import NetworkConfig
from refocus.optics.random_defocus import OpticsRange
from refocus.training.config import DiscriminatorConfig, LossWeights, TrainingConfig


def deep_r() -> TrainingConfig:
    """Deep-R: Luo, Huang, Rivenson, Ozcan, ACS Photonics 2021, doi 10.1021/acsphotonics.0c01774.

    Public: a U-Net generator with residual down and up blocks against a convolutional discriminator; loss of
    least-squares adversarial, MS-SSIM and BerHu terms; Adam; pairs over the whole z-range. Chosen here, because the
    text leaves it open: widths, two convolutions a block, weights of the three terms, learning rates, batch, crop and
    the number of steps. Added to it, as to every recipe: averaged weights, clipping, the schedule, and heads for
    scale and blur with small weights. Its pairs were measured; where a dataset has sharp images alone, they are
    simulated like everybody's.
    """
    return TrainingConfig(
        name="deep_r",
        modality="fluorescence",
        network=NetworkConfig(
            architecture="deep_r",
            unshuffle=1,
            widths=(24, 48, 96, 192, 384),
            encoder_blocks=(1, 1, 1, 1),
            decoder_blocks=(1, 1, 1, 1),
            middle_blocks=1,
        ),
        crop_px=192,
        batch_size=16,
        steps=100_000,
        learning_rate=1e-4,
        warmup_steps=500,
        weight_decay=0.0,
        checkpoint_interval_steps=2000,
        optics=OpticsRange(blur_radius_px=(0.0, 37.0), out_of_range_share=0.05),
        loss=LossWeights(
            log_mse=0.0, harm=0.0, berhu=1.0, ssim=0.0, ms_ssim=0.5, light=0.0, scale=0.01, blur=0.02, adversarial=0.05
        ),
        discriminator=DiscriminatorConfig(width=24, learning_rate=3e-5),
    )
