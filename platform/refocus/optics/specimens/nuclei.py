"""Cell nuclei: bodies with an uneven outline, chromatin, nucleoli; used alone and inside tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from refocus.optics.specimens.fields import edge, scattered, smooth_noise, uniform
from refocus.optics.specimens.specimen import Grid, Specimen


@dataclass(frozen=True, slots=True)
class Body:
    """A flattened ellipsoid with an uneven outline; lengths in um, centre (z, y, x), angle of the long axis."""

    centre: tuple[float, float, float]
    half_length: float
    half_width: float
    half_height: float
    angle: float
    unevenness: float


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a grid around a body, with each voxel's place in the body's own frame (1 on its surface)."""

    slices: tuple[slice, slice, slice]
    radius: Tensor
    along: Tensor
    across: Tensor
    up: Tensor
    coverage: Tensor


def window_of(body: Body, grid: Grid, generator: torch.Generator) -> Window | None:
    """Where `body` lies in `grid`, or None where it does not."""
    reach = 1.25 * max(body.half_length, body.half_width)
    axes = []
    picked = []
    for coordinate, centre, half in (
        (grid.z_um(), body.centre[0], body.half_height),
        (grid.y_um(), body.centre[1], reach),
        (grid.x_um(), body.centre[2], reach),
    ):
        hit = ((coordinate - centre).abs() <= half + 2 * max(grid.pixel_um, 0.3)).nonzero().flatten()
        if len(hit) == 0:
            return None
        picked.append(slice(int(hit[0]), int(hit[-1]) + 1))
        axes.append(coordinate[picked[-1]] - centre)
    z, y, x = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
    along = (x * math.cos(body.angle) + y * math.sin(body.angle)) / body.half_length
    across = (y * math.cos(body.angle) - x * math.sin(body.angle)) / body.half_width
    around = torch.atan2(across, along)
    outline = torch.ones_like(around)
    for order in range(2, 7):
        phase, size = uniform(generator, 0.0, 2.0 * math.pi, 1), torch.randn(1, generator=generator)
        outline = outline + body.unevenness / order * size * torch.cos(order * around + phase)
    flat = ((along**2 + across**2).sqrt() / outline).expand(len(z), -1, -1)
    up = (z / body.half_height).expand_as(flat)
    # Cultured cells' nuclei are cushions: steeper sides and a flatter top than an ellipsoid.
    radius = (flat**2.6 + up.abs() ** 2.6) ** (1.0 / 2.6)
    thinnest = min(body.half_width, body.half_length)
    coverage = edge((1.0 - radius) * thinnest / grid.pixel_um)
    return Window((picked[0], picked[1], picked[2]), radius, along, across, up, coverage)


def chromatin(grid: Grid, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fine and coarse texture over a whole grid, unit variance each."""
    voxel = (grid.slice_um, grid.pixel_um, grid.pixel_um)
    fine = smooth_noise(grid.shape, voxel, 0.28, generator, rough=1.6)
    coarse = smooth_noise(grid.shape, voxel, 0.9, generator, rough=2.0)
    return fine, coarse


def nucleoli(window: Window, body: Body, count: int, generator: torch.Generator) -> Tensor:
    """Share of each voxel that lies in a nucleolus."""
    share = torch.zeros_like(window.radius)
    for _ in range(count):
        turn, out = uniform(generator, 0.0, 2 * math.pi, 1), uniform(generator, 0.1, 0.6, 1)
        size = uniform(generator, 0.5, 1.3, 1) * min(1.0, body.half_width / 5.0)
        squash = uniform(generator, 0.7, 1.3, 1)
        along = (window.along - out * torch.cos(turn)) * body.half_length * squash
        across = (window.across - out * torch.sin(turn)) * body.half_width / squash
        up = (window.up - uniform(generator, -0.3, 0.3, 1)) * body.half_height * 0.8
        distance = (along**2 + across**2 + up**2).sqrt()
        share = torch.maximum(share, ((size - distance) / 0.35 + 0.5).clamp(0.0, 1.0))
    return share


def grow_nuclei(grid: Grid, generator: torch.Generator, *, crowding: float = 1.0) -> Specimen:
    """Nuclei of a cultured monolayer under a DNA dye: interphase with nucleoli, some mitotic, some dying."""
    emission = torch.zeros(grid.shape)
    fine, coarse = chromatin(grid, generator)
    # One species a specimen: mouse nuclei carry bright chromocentres, human ones do not; dyes differ in contrast.
    chromocentres = bool(torch.rand(1, generator=generator) < 0.35)
    contrast = uniform(generator, 0.28, 0.5, 1).item()
    mean_radius = uniform(generator, 5.0, 7.5, 1).item()
    crowded = smooth_noise((48, 48), (1.0, 1.0), 9.0, generator)
    density = (0.55 + 0.5 * crowded).clamp(0.04, 1.0) * crowding
    centres = scattered(grid.size_um, 2.1 * mean_radius, generator, density=density, tries=10)
    for y, x in centres.tolist():
        kind = torch.rand(1, generator=generator).item()
        stretch = uniform(generator, 1.0, 1.6, 1).item()
        size = mean_radius * uniform(generator, 0.78, 1.2, 1).item()
        centre = (0.25 * torch.randn(1, generator=generator).item(), y, x)
        angle = uniform(generator, 0.0, math.pi, 1).item()
        if kind < 0.04:
            _mitotic(emission, grid, centre, angle, size, coarse, generator)
            continue
        dying = kind < 0.07
        scale = 0.5 if dying else 1.0
        body = Body(
            centre=centre,
            half_length=scale * size * math.sqrt(stretch),
            half_width=scale * size / math.sqrt(stretch),
            half_height=uniform(generator, 1.6, 2.4, 1).item(),
            angle=angle,
            unevenness=0.045 if not dying else 0.12,
        )
        window = window_of(body, grid, generator)
        if window is None:
            continue
        texture = torch.exp(contrast * fine[window.slices] + 0.6 * contrast * coarse[window.slices])
        # Heterochromatin lines the envelope; nucleoli hold next to no DNA and wear a bright shell.
        texture = texture * (1.0 + 0.25 * ((window.radius - 0.82) / 0.12).clamp(0.0, 1.0))
        holes = nucleoli(window, body, int(torch.randint(1, 5, (1,), generator=generator)), generator)
        texture = texture * (1.0 + 0.8 * holes * (1.0 - holes)) * (1.0 - 0.72 * holes)
        if chromocentres:
            spots = nucleoli(window, body, int(torch.randint(6, 14, (1,), generator=generator)), generator)
            texture = texture + 1.3 * spots * spots
        # DNA content doubles through the cell cycle; staining varies on top.
        brightness = uniform(generator, 0.55, 1.1, 1) * torch.exp(0.2 * torch.randn(1, generator=generator))
        brightness = brightness * (2.2 if dying else 1.0)
        emission[window.slices] += window.coverage * texture * brightness
    _add_haze(emission, grid, generator, amount=0.015)
    return Specimen.fluorescent("nuclei", emission, grid)


def _mitotic(
    emission: Tensor,
    grid: Grid,
    centre: tuple[float, float, float],
    angle: float,
    size: float,
    coarse: Tensor,
    generator: torch.Generator,
) -> None:
    """A metaphase plate, or the two plates of anaphase."""
    apart = uniform(generator, 1.8, 3.5, 1).item() if torch.rand(1, generator=generator) < 0.5 else 0.0
    for side in (-1.0, 1.0) if apart else (0.0,):
        body = Body(
            centre=(
                centre[0],
                centre[1] + side * apart * math.cos(angle),
                centre[2] - side * apart * math.sin(angle),
            ),
            half_length=0.75 * size,
            half_width=1.1,
            half_height=2.2,
            angle=angle,
            unevenness=0.18,
        )
        window = window_of(body, grid, generator)
        if window is not None:
            emission[window.slices] += 2.0 * window.coverage * torch.exp(0.3 * coarse[window.slices])


def _add_haze(emission: Tensor, grid: Grid, generator: torch.Generator, *, amount: float) -> None:
    """Autofluorescent cytoplasm: wide, faint, uneven, throughout the depth."""
    lumps = smooth_noise(grid.shape[1:], (grid.pixel_um,) * 2, 6.0, generator)
    emission += amount * torch.exp(0.5 * lumps) * emission.amax() / grid.slices * 2.0
