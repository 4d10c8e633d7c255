"""Images of fluorescent specimens: a sheet, a tilted sheet, a volume in which each slice has its own defocus.

Light is incoherent, so intensities add: every slice is convolved with the PSF of its distance from the focal plane and
the slices are summed. Exact within the scalar PSF as long as the specimen neither absorbs nor scatters and the PSF does
not change over the field. Specimens are given on the camera's grid: a value is the light of one pixel's area. All
functions keep the light (what crosses a dark rim apart) and are differentiable in the specimen, the sheets in their
defocus too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from refocus.errors import InputError
from refocus.optics.psf import fast_fft_length, widefield_psf
from refocus.optics.settings import OpticalSystem

#: What lies beyond the specimen's rim: its mirror image, darkness, or its opposite side.
Boundary = Literal["mirror", "dark", "periodic"]
#: Transfer functions [D, H, W // 2 + 1] of D distances in um on a grid of (H, W) pixels.
Transfer = Callable[[Tensor, tuple[int, int]], Tensor]


def psf_transfer(system: OpticalSystem) -> Transfer:
    """Transfer functions of `system`'s widefield PSF, complex."""

    def transfer(defocus_um: Tensor, shape: tuple[int, int]) -> Tensor:
        largest = min(shape)
        size = largest - 1 + largest % 2
        psf = widefield_psf(system, defocus_um, size_px=size)
        padded = F.pad(psf, (0, shape[1] - size, 0, shape[0] - size))
        return torch.fft.rfft2(torch.roll(padded, (-(size // 2), -(size // 2)), (-2, -1)))

    return transfer


def sheet(emission: Tensor, system: OpticalSystem, defocus_um: Tensor, *, boundary: Boundary = "mirror") -> Tensor:
    """A flat, thin specimen at a distance from the focal plane.

    Parameters
    ----------
    emission : Tensor, shape [B, H, W]
        Light of each pixel's area.
    system : OpticalSystem
    defocus_um : Tensor, shape [B] or [1]
    boundary : {'mirror', 'dark', 'periodic'}

    Returns
    -------
    Tensor, shape [B, H, W]
        Light that each camera pixel receives, in the unit of `emission`.
    """
    _check(emission, 3, "[B, H, W]")
    if defocus_um.shape not in ((1,), (len(emission),)):
        raise InputError(f"defocus_um has shape {tuple(defocus_um.shape)} for {len(emission)} sheets; expected [B].")
    margin = margin_px(system, defocus_um.detach().abs().max().item())
    padded = pad(emission, margin, boundary)
    shape = (padded.shape[-2], padded.shape[-1])
    spectrum = torch.fft.rfft2(padded) * psf_transfer(system)(defocus_um, shape)
    return cropped(torch.fft.irfft2(spectrum, s=shape), margin, boundary, emission)


def tilted_sheet(
    emission: Tensor,
    system: OpticalSystem,
    defocus_um: Tensor,
    slope: tuple[float, float],
    *,
    node_um: float | None = None,
    boundary: Boundary = "mirror",
) -> Tensor:
    """A flat, thin specimen that leans out of the focal plane.

    The sheet is divided among nodes along z by linear weights that sum to 1, and each node's share is imaged at its
    distance.

    Parameters
    ----------
    emission : Tensor, shape [B, H, W]
    system : OpticalSystem
    defocus_um : Tensor, shape [B]
        At the image's centre.
    slope : (float, float)
        Rise in um per um along rows and columns: ``tan(angle)``.
    node_um : float, optional
        Spacing of the nodes; half a depth of field where not given.
    boundary : {'mirror', 'dark', 'periodic'}

    Returns
    -------
    Tensor, shape [B, H, W]
    """
    _check(emission, 3, "[B, H, W]")
    spacing = node_um if node_um is not None else 0.5 * system.depth_of_field_um
    if spacing <= 0:
        raise InputError(f"node_um is {spacing}; expected a positive distance.")
    height, width = emission.shape[-2:]
    half = 0.5 * system.pixel_size_um * (abs(slope[0]) * (height - 1) + abs(slope[1]) * (width - 1))
    reach = math.ceil(half / spacing)
    margin = margin_px(system, defocus_um.detach().abs().max().item() + reach * spacing)
    padded = pad(emission, margin, boundary)
    shape = (padded.shape[-2], padded.shape[-1])
    # The sheet's mirror image beyond the rim stays at the height of the rim.
    heights = [
        (torch.arange(n, device=emission.device) - (0 if boundary == "periodic" else margin) - (size - 1) / 2).clamp(
            -(size - 1) / 2, (size - 1) / 2
        )
        * rise
        for n, size, rise in zip(shape, (height, width), slope, strict=True)
    ]
    place = (heights[0][:, None] + heights[1]) * (system.pixel_size_um / spacing)
    transfer = psf_transfer(system)
    total: Tensor | None = None
    for node in range(-reach, reach + 1):
        weight = (1.0 - (place - node).abs()).clamp_min(0.0)
        part = torch.fft.rfft2(padded * weight) * transfer(defocus_um + node * spacing, shape)
        total = part if total is None else total + part
    assert total is not None
    return cropped(torch.fft.irfft2(total, s=shape), margin, boundary, emission)


def volume(
    emission: Tensor,
    system: OpticalSystem,
    focus_um: Tensor,
    *,
    slice_um: float,
    boundary: Boundary = "mirror",
    transfer: Transfer | None = None,
) -> Tensor:
    """A focal series of a thick specimen.

    Parameters
    ----------
    emission : Tensor, shape [Z, H, W] or [Z, C, H, W]
        Slices in the order of z; colours share one transfer.
    system : OpticalSystem
    focus_um : Tensor, shape [P]
        Where each plane is focused, counted from slice 0.
    slice_um : float
        Distance of neighbouring slices.
    boundary : {'mirror', 'dark', 'periodic'}
    transfer : Transfer, optional
        Another transfer than the widefield PSF's.

    Returns
    -------
    Tensor, shape [P, H, W] or [P, C, H, W]
    """
    if emission.ndim not in (3, 4):
        raise InputError(f"emission has shape {tuple(emission.shape)}; expected [Z, H, W] or [Z, C, H, W].")
    if slice_um <= 0:
        raise InputError(f"slice_um is {slice_um}; expected a positive distance.")
    heights = torch.arange(len(emission), device=emission.device, dtype=emission.dtype) * slice_um
    distance = focus_um.to(emission)[:, None] - heights
    margin = margin_px(system, distance.abs().max().item())
    padded = pad(emission, margin, boundary)
    shape = (padded.shape[-2], padded.shape[-1])
    spectra = torch.fft.rfft2(padded)
    # Planes and slices on one lattice share most distances: each transfer function is made once.
    lattice = (distance * 1e5).round()
    distinct, place = torch.unique(lattice, return_inverse=True)
    make = transfer if transfer is not None else psf_transfer(system)
    gains = torch.cat([make(part, shape) for part in (distinct / 1e5).split(8)])
    planes = []
    for row in place:
        gain = gains[row] if emission.ndim == 3 else gains[row][:, None]
        planes.append(torch.fft.irfft2((spectra * gain).sum(0), s=shape))
    return cropped(torch.stack(planes), margin, boundary, emission)


def margin_px(system: OpticalSystem, farthest_um: float) -> int:
    """Pixels beyond the rim from which a noticeable share of light arrives at this distance."""
    return math.ceil(1.15 * system.blur_radius_px(farthest_um) + 3.0 * system.airy_radius_um / system.pixel_size_um) + 2


def pad(images: Tensor, margin: int, boundary: Boundary) -> Tensor:
    """Extend the last two axes for a periodic transform; :func:`cropped` undoes it."""
    if boundary == "periodic":
        return images
    height, width = images.shape[-2:]
    down, across = (fast_fft_length(n + 2 * margin) for n in (height, width))
    if boundary == "dark":
        return F.pad(images, (margin, across - width - margin, margin, down - height - margin))
    return mirrored_to(images, (down, across), (margin, margin))


def cropped(images: Tensor, margin: int, boundary: Boundary, like: Tensor) -> Tensor:
    """Cut what :func:`pad` added around an image of the height and width of `like`."""
    if boundary == "periodic":
        return images
    height, width = like.shape[-2:]
    return images[..., margin : margin + height, margin : margin + width]


def mirrored_to(images: Tensor, size: tuple[int, int], before: tuple[int, int]) -> Tensor:
    """Continue images [..., H, W] by reflection to `size`, any distance out, so many samples in front along each."""
    for axis, wanted, first in zip((-2, -1), size, before, strict=True):
        images = images.index_select(axis, mirrored(images.shape[axis], wanted, first, images.device))
    return images


def mirrored(size: int, wanted: int, before: int, device: torch.device | None = None) -> Tensor:
    """Indices of `size` samples continued by reflection to `wanted`, `before` of them in front."""
    if size == 1:
        return torch.zeros(wanted, dtype=torch.int64, device=device)
    place = (torch.arange(wanted, device=device) - before) % (2 * (size - 1))
    return torch.where(place < size, place, 2 * (size - 1) - place)


def _check(emission: Tensor, axes: int, expected: str) -> None:
    if emission.ndim != axes or not emission.is_floating_point():
        raise InputError(f"emission has shape {tuple(emission.shape)} and {emission.dtype}; expected float {expected}.")
