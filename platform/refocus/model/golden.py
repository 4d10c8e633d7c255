"""One small image, made by formula, and what a package makes of it: the same numbers wherever it runs rightly.

Bytes differ between processors and precisions; means over blocks do not, beyond rounding. So a package that loads
but computes something else (a wrong layout, a broken kernel, a half-read file) shows before it serves anyone.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from refocus.errors import ModelUnfit
from refocus.model.checkpoint import ModelPackage
from refocus.model.networks import RefocusNetwork

SIDE_PX = 96
BLOCK_PX = 16
#: Of normalised intensity, in which an image spans about 0 to 1. bfloat16 moves block means by less than 0.01.
TOLERANCE = 0.03

_Number = Annotated[float, Field(allow_inf_nan=False), AfterValidator(lambda value: float(f"{value:.6g}"))]


class GoldenOutput(BaseModel):
    """Means over blocks of the restored golden image, in normalised intensity.

    Parameters
    ----------
    block_means : tuple of float
        Channel by channel, row by row.
    spread : float
        Standard deviation over all pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    block_means: tuple[_Number, ...]
    spread: _Number


def golden_image(channels: int) -> Tensor:
    """Return [1, C, Y, X] float32: soft spots on a lattice that never repeats, from 0 to 1, by formula alone."""
    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX] / SIDE_PX
    image = np.zeros((channels, SIDE_PX, SIDE_PX))
    # Fractional parts of multiples of irrational numbers: spread out, and the same on every machine.
    for spot in range(24):
        centre_y, centre_x = (spot * 0.6180339887) % 1, (spot * 0.7548776662) % 1
        width = 0.015 + 0.035 * ((spot * 0.4142135624) % 1)
        shape = np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / (2 * width**2))
        for channel in range(channels):
            image[channel] += (0.3 + 0.7 * ((spot + channel) * 0.2360679775 % 1)) * shape
    return torch.from_numpy((image / image.max()).astype(np.float32))[None]


@torch.inference_mode()
def golden_output(package: ModelPackage, network: RefocusNetwork | None = None) -> GoldenOutput:
    """Return what `package` makes of the golden image.

    Parameters
    ----------
    package : ModelPackage
    network : RefocusNetwork, optional
        The package's network as it will serve, on its device; built on the CPU where not given.

    Raises
    ------
    ModelUnfit
        If the output is not finite.
    """
    network = network or package.network()
    weight = next(network.parameters())
    image = golden_image(package.config.channels).to(weight.device, weight.dtype)
    restored = network(image).image.float().cpu()[0]
    if not bool(restored.isfinite().all()):
        raise ModelUnfit(f"model {package.digest[:12]} makes NaN or infinities of the golden image.")
    blocks = torch.nn.functional.avg_pool2d(restored, BLOCK_PX)
    return GoldenOutput(block_means=tuple(blocks.flatten().tolist()), spread=float(restored.std()))


def largest_difference(found: GoldenOutput, expected: GoldenOutput) -> float:
    """Return the largest difference of block means and spread; infinite where they do not compare."""
    if len(found.block_means) != len(expected.block_means):
        return float("inf")
    pairs = zip((*found.block_means, found.spread), (*expected.block_means, expected.spread), strict=True)
    return max(abs(a - b) for a, b in pairs)


def check_golden(package: ModelPackage, expected: GoldenOutput, network: RefocusNetwork | None = None) -> float:
    """Return how far `package` is from what it is known to make of the golden image.

    Raises
    ------
    ModelUnfit
        If that is more than `TOLERANCE`.
    """
    difference = largest_difference(golden_output(package, network), expected)
    if difference > TOLERANCE:
        raise ModelUnfit(
            f"model {package.digest[:12]} does not reproduce its golden image here: off by {difference:.3g}, where "
            f"{TOLERANCE} is allowed. Is this machine's torch or driver at fault?"
        )
    return difference
