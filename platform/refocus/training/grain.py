"""Texture of a specimen's own, down to single pixels.

Published images are often soft: enlarged, compressed, or smoothed before they were stored. A network that has seen no
other takes fine texture for noise, and a share of its changes that was fitted on no other lets it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: From hardly any to as much as specimens have: standard deviations of the logarithm of what shines or absorbs.
USUAL_STRENGTH = (0.02, 0.3)
#: Standard deviation of the widest grain.
_WIDEST_PX = 1.2


def with_grain(
    image: Tensor, strength: tuple[float, float], generator: torch.Generator, *, absorbing: bool = False
) -> Tensor:
    """Give a specimen texture from single pixels to a few wide; clear ground stays clear.

    Parameters
    ----------
    image : Tensor, float, shape [C, h, w]
        What shines, in any unit, or, where it absorbs, what is left of a lamp's light at 1.
    strength : (low, high)
        Standard deviation of the logarithm of what shines, or of what absorbs, drawn log-uniformly.
    generator : torch.Generator
        On the CPU: strength and width follow from it alone. Grain is drawn on the device of the image: equal seeds
        give equal grain on one kind of device.
    absorbing : bool

    Returns
    -------
    Tensor, shape of `image`
    """
    drawn = torch.rand(2, generator=generator)
    low, high = strength
    deviation, width_px = low * (high / low) ** float(drawn[0]), _WIDEST_PX * float(drawn[1])
    reach = math.ceil(3.0 * width_px)
    device = image.device
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(generator.initial_seed())
    noise = torch.randn(1, *(side + 2 * reach for side in image.shape[-2:]), generator=generator, device=device)
    along = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=device) / max(width_px, 1e-3)).square())
    along = along / along.norm()
    texture = F.conv2d(F.conv2d(noise[None], along[None, None, None]), along[None, None, :, None])[0]
    factor = torch.exp(deviation * texture)
    # What shines has so many times the light; what absorbs so many times the stain.
    return image.clamp_min(0.0) ** factor if absorbing else image * factor
