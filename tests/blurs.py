"""Blurs through the usual objective, by the wave-optical PSF: what tests of the inverse problem start from."""

from __future__ import annotations

import torch
from torch import Tensor

from refocus.optics.ladder import PROFILES, Profile
from refocus.optics.psf import widefield_psf
from refocus.optics.settings import STANDARD_SYSTEM


def out_of_focus(sharp: Tensor, radius_px: float) -> Tensor:
    """Square images [..., Y, X], periodic, through the transform of the whole image."""
    psf = widefield_psf(
        STANDARD_SYSTEM, torch.tensor([STANDARD_SYSTEM.defocus_um_for(radius_px)]), size_px=sharp.shape[-1]
    )[0]
    return torch.fft.irfft2(torch.fft.rfft2(sharp) * torch.fft.rfft2(torch.fft.ifftshift(psf)), s=sharp.shape[-2:])


def blur_planes(radius_px: float, height: int, width: int) -> Tensor:
    """What a network is told of an even blur: radius and profile, [1, 2, Y, X]."""
    planes = torch.full((1, 2, height, width), radius_px)
    planes[:, 1] = PROFILES.index(Profile(0.4, 0.75))
    return planes
