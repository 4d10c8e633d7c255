"""What specimens are drawn with: random fields, scattered centres, anti-aliased points, streaks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from refocus.optics.psf import fast_fft_length


def smooth_noise(
    shape: tuple[int, ...],
    voxel_um: tuple[float, ...],
    scale_um: float,
    generator: torch.Generator,
    *,
    rough: float = 2.0,
) -> Tensor:
    """Gaussian random field of zero mean and unit variance.

    Its spectrum falls as ``(1 + (2 pi f scale)^2) ** -rough``: features of about `scale_um`, the rougher the smaller
    `rough`. It does not repeat at the rim. `shape` has two or three axes.
    """
    padded = tuple(
        fast_fft_length(n + math.ceil(3.0 * scale_um / side)) if n > 1 else 1
        for n, side in zip(shape, voxel_um, strict=True)
    )
    squared = torch.zeros(())
    for axis, (n, side) in enumerate(zip(padded, voxel_um, strict=True)):
        last = axis == len(padded) - 1
        frequency = torch.fft.rfftfreq(n, side) if last else torch.fft.fftfreq(n, side)
        squared = squared[..., None] + frequency**2
    envelope = (1.0 + (2.0 * math.pi * scale_um) ** 2 * squared) ** (-rough)
    envelope[(0,) * len(shape)] = 0.0
    spectrum = torch.fft.rfftn(torch.randn(padded, generator=generator)) * envelope
    # Real transforms of three axes at once write past their buffer on CPUs (pytorch #125664; seen with 2.13 and
    # 16 x 540 x 540): the last two suffice.
    if len(shape) == 3:
        spectrum = torch.fft.ifft(spectrum, dim=0)
    field = torch.fft.irfft2(spectrum, s=padded[-2:])[tuple(slice(n) for n in shape)]
    return (field - field.mean()) / field.std().clamp_min(1e-12)


def scattered(
    size_um: tuple[float, float],
    spacing_um: float,
    generator: torch.Generator,
    *,
    density: Tensor | None = None,
    tries: int = 24,
) -> Tensor:
    """Random centres [N, 2] (y, x) in micrometres, no two closer than `spacing_um` (dart throwing).

    `density` [h, w], if given, is the chance to keep a centre there, over the whole field.
    """
    cell = spacing_um / math.sqrt(2.0)
    rows, columns = (math.ceil(side / cell) + 1 for side in size_um)
    count = tries * rows * columns // 4
    darts = torch.rand(count, 2, generator=generator) * torch.tensor(size_um)
    kept = torch.rand(count, generator=generator)
    taken: dict[tuple[int, int], tuple[float, float]] = {}
    for (y, x), chance in zip(darts.tolist(), kept.tolist(), strict=True):
        if density is not None:
            h, w = density.shape
            if chance > density[min(h - 1, int(y / size_um[0] * h)), min(w - 1, int(x / size_um[1] * w))]:
                continue
        row, column = int(y / cell), int(x / cell)
        near = (taken.get((r, c)) for r in range(row - 2, row + 3) for c in range(column - 2, column + 3))
        if all(other is None or (other[0] - y) ** 2 + (other[1] - x) ** 2 >= spacing_um**2 for other in near):
            taken[row, column] = (y, x)
    return torch.tensor(list(taken.values()), dtype=torch.float32).reshape(-1, 2)


def splat(volume: Tensor, place: Tensor, weight: Tensor) -> None:
    """Add points to `volume` [Z, H, W] in place, shared trilinearly among neighbours; points outside are dropped.

    `place` is [N, 3] in voxels (z, y, x), 0 being the centre of the first voxel.
    """
    lower = place.floor()
    part = place - lower
    base = lower.to(torch.int64)
    size = torch.tensor(volume.shape)
    flat = volume.view(-1)
    for corner in range(8):
        step = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        index = base + step
        inside = ((index >= 0) & (index < size)).all(1)
        share = torch.where(step.bool(), part, 1.0 - part).prod(1) * weight
        where = (index[inside] * torch.tensor([size[1] * size[2], size[2], 1])).sum(1)
        flat.index_add_(0, where, share[inside])


def streaks(noise: Tensor, angle: Tensor, length_px: float, steps: int = 16) -> Tensor:
    """Smear `noise` [H, W] along the direction field `angle` [H, W] (line integral convolution).

    Cabral and Leedom, SIGGRAPH 1993. Unit variance again afterwards.
    """
    height, width = noise.shape
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32), indexing="ij"
    )
    total = noise.clone()
    step = length_px / steps

    def sample(image: Tensor, row: Tensor, column: Tensor) -> Tensor:
        grid = torch.stack([2.0 * column / (width - 1) - 1.0, 2.0 * row / (height - 1) - 1.0], -1)
        return F.grid_sample(image[None, None], grid[None], padding_mode="reflection", align_corners=True)[0, 0]

    for sign in (1.0, -1.0):
        row, column = y, x
        for _ in range(steps):
            heading = sample(angle, row, column)
            row, column = row + sign * step * torch.sin(heading), column + sign * step * torch.cos(heading)
            total = total + sample(noise, row, column)
    return (total - total.mean()) / total.std().clamp_min(1e-12)


def edge(signed_px: Tensor) -> Tensor:
    """Coverage of a voxel by a body whose surface lies `signed_px` outwards of it: 1 inside, 0 outside."""
    return (signed_px + 0.5).clamp(0.0, 1.0)


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Uniform random numbers of `shape`."""
    return low + (high - low) * torch.rand(shape, generator=generator)
