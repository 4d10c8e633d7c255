"""A section of tissue under haematoxylin and eosin: glands around lumens, fibrous stroma, blood."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from refocus.optics.brightfield import EOSIN, HAEMATOXYLIN
from refocus.optics.specimens.fields import edge, scattered, smooth_noise, streaks, uniform
from refocus.optics.specimens.nuclei import Body, chromatin, nucleoli, window_of
from refocus.optics.specimens.specimen import Grid, Specimen


def grow_tissue(grid: Grid, generator: torch.Generator) -> Specimen:
    """Glandular tissue, cut at the thickness of `grid`, stained with haematoxylin and eosin.

    A smooth random landscape lays it out: lumens where it is high, epithelium on their slopes with nuclei across the
    slope, stroma below with nuclei along its fibres.
    """
    plane, pixel = grid.shape[1:], (grid.pixel_um,) * 2
    landscape = smooth_noise(plane, pixel, 22.0, generator, rough=2.5)
    slope = torch.gradient(landscape, spacing=grid.pixel_um)
    steepness = (slope[0] ** 2 + slope[1] ** 2).sqrt().clamp_min(0.01)
    # Signed distances in um, to first order: from the lumen's rim, and from the rim of the gland.
    lumen_level = uniform(generator, 0.9, 1.3, 1)
    lumen = ((landscape - lumen_level) / steepness).clamp(-60.0, 60.0)
    gland = ((landscape - uniform(generator, -0.1, 0.3, 1)) / steepness).clamp(-60.0, 60.0)
    uphill = torch.atan2(slope[0], slope[1])

    in_lumen = edge(lumen / grid.pixel_um + 1.5 * smooth_noise(plane, pixel, 0.8, generator))
    in_gland = edge(gland / 1.5) * (1.0 - in_lumen)
    in_stroma = (1.0 - edge(gland / 1.5)) * (1.0 - in_lumen)

    haematoxylin, eosin = torch.zeros(grid.shape), torch.zeros(grid.shape)
    eosin += _cytoplasm(grid, in_gland, generator)
    eosin += _stroma(grid, in_stroma, uphill, generator)
    # Mucin in the lumen: faint, blue, streaked.
    haematoxylin += 0.03 * in_lumen * (1.0 + smooth_noise(plane, pixel, 4.0, generator)).clamp_min(0.0)
    _blood(eosin, haematoxylin, grid, in_stroma, generator)

    texture = chromatin(grid, generator)
    spacing = uniform(generator, 5.5, 7.5, 1).item()
    inside = (in_gland * edge((-lumen - 3.5) / 1.0))[::4, ::4]
    for y, x in scattered(grid.size_um, spacing, generator, density=inside * 0.9, tries=24).tolist():
        heading = uphill[_at(y, grid.height, grid), _at(x, grid.width, grid)].item()
        _epithelial(haematoxylin, eosin, grid, (y, x), heading, texture, generator)
    for y, x in scattered(grid.size_um, 9.0, generator, density=in_stroma[::4, ::4] * 0.55, tries=16).tolist():
        heading = uphill[_at(y, grid.height, grid), _at(x, grid.width, grid)].item() + 0.5 * math.pi
        _stromal(haematoxylin, eosin, grid, (y, x), heading, texture, generator)
    # Sections are cut uneven and dyes take unevenly.
    uneven = torch.exp(0.08 * smooth_noise(plane, pixel, 40.0, generator))
    strength = uniform(generator, 0.8, 1.2, 2)
    amounts = torch.stack([haematoxylin * strength[0], eosin * strength[1]], 1) * uneven
    return Specimen.stained("tissue", amounts / grid.slices, (HAEMATOXYLIN, EOSIN), grid)


def _at(place_um: float, size: int, grid: Grid) -> int:
    return min(size - 1, max(0, int(place_um / grid.pixel_um)))


def _cytoplasm(grid: Grid, where: Tensor, generator: torch.Generator) -> Tensor:
    """Epithelial cytoplasm: granular and cloudy, amounts as if through the whole section."""
    voxel = (grid.slice_um, grid.pixel_um, grid.pixel_um)
    grain = smooth_noise(grid.shape, voxel, 0.5, generator, rough=1.5)
    cloud = smooth_noise(grid.shape[1:], voxel[1:], 5.0, generator)
    return 0.26 * where * torch.exp(0.35 * grain + 0.25 * cloud)


def _stroma(grid: Grid, where: Tensor, uphill: Tensor, generator: torch.Generator) -> Tensor:
    """Collagen: wavy strands along the glands with clefts between, different in the upper and the lower half."""
    plane, pixel = grid.shape[1:], (grid.pixel_um,) * 2
    wander = 0.5 * smooth_noise(plane, pixel, 12.0, generator)
    layers = []
    for _ in range(2):
        seed = smooth_noise(plane, pixel, 0.7, generator, rough=1.2)
        thick = streaks(seed, uphill + 0.5 * math.pi + wander, 14.0 / grid.pixel_um)
        seed = smooth_noise(plane, pixel, 0.25, generator, rough=1.2)
        thin = streaks(seed, uphill + 0.5 * math.pi + 1.2 * wander, 7.0 / grid.pixel_um)
        clefts = 1.0 / (1.0 + torch.exp(-3.5 * (thick + 0.55)))
        layers.append(0.42 * clefts * torch.exp(0.22 * thin + 0.15 * thick))
    blend = torch.linspace(0.0, 1.0, grid.slices)[:, None, None]
    return where * ((1.0 - blend) * layers[0] + blend * layers[1])


def _blood(eosin: Tensor, haematoxylin: Tensor, grid: Grid, where: Tensor, generator: torch.Generator) -> None:
    """A vessel or two packed with red cells: biconcave discs at any tilt."""
    for y, x in scattered(grid.size_um, 55.0, generator, density=where[::4, ::4] * 0.5, tries=4).tolist():
        radius = uniform(generator, 7.0, 13.0, 1).item()
        rows, columns = grid.y_um()[:, None] - y, grid.x_um() - x
        turn, flat = uniform(generator, 0.0, math.pi, 1).item(), uniform(generator, 1.2, 2.0, 1).item()
        along = columns * math.cos(turn) + rows * math.sin(turn)
        across = (rows * math.cos(turn) - columns * math.sin(turn)) * flat
        out = (along**2 + across**2).sqrt()
        bore = edge((radius - out) / grid.pixel_um)
        eosin *= 1.0 - 0.92 * bore
        haematoxylin *= 1.0 - bore
        # The wall: a thin pink lining.
        eosin += 0.25 * torch.exp(-0.5 * ((out - radius) / 0.7) ** 2) * where
        for cy, cx in scattered((2 * radius, 2 * radius), 4.2, generator, tries=60).tolist():
            cy, cx = cy - radius, cx - radius
            if (cx * math.cos(turn) + cy * math.sin(turn)) ** 2 + (
                flat * (cy * math.cos(turn) - cx * math.sin(turn))
            ) ** 2 > (radius - 1.8) ** 2:
                continue
            lean, spin = uniform(generator, 0.55, 1.0, 1), uniform(generator, 0.0, math.pi, 1)
            u = (columns - cx) * torch.cos(spin) + (rows - cy) * torch.sin(spin)
            v = ((rows - cy) * torch.cos(spin) - (columns - cx) * torch.sin(spin)) / lean
            disc = (u**2 + v**2).sqrt() / 3.0
            eosin += 0.6 * edge((1.0 - disc) * 3.0 / grid.pixel_um) * (0.62 + 0.55 * disc.clamp(max=1.0) ** 2)


def _epithelial(
    haematoxylin: Tensor,
    eosin: Tensor,
    grid: Grid,
    place: tuple[float, float],
    heading: float,
    texture: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> None:
    """A vesicular nucleus: pale inside, a dark envelope, clumps, a nucleolus."""
    long = uniform(generator, 3.4, 5.0, 1).item()
    body = Body(
        centre=(uniform(generator, -2.5, 2.5, 1).item(), *place),
        half_length=long,
        half_width=long * uniform(generator, 0.6, 0.85, 1).item(),
        half_height=uniform(generator, 2.5, 3.4, 1).item(),
        angle=heading + 0.3 * torch.randn(1, generator=generator).item(),
        unevenness=0.05,
    )
    density = uniform(generator, 0.65, 1.25, 1)
    _stain_nucleus(haematoxylin, eosin, grid, body, density, texture, 0.8, generator)


def _stromal(
    haematoxylin: Tensor,
    eosin: Tensor,
    grid: Grid,
    place: tuple[float, float],
    heading: float,
    texture: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> None:
    """A fibroblast's spindle, or a lymphocyte's dark ball."""
    lymphocyte = bool(torch.rand(1, generator=generator) < 0.3)
    size = uniform(generator, 2.4, 3.2, 1).item()
    body = Body(
        centre=(uniform(generator, -2.0, 2.0, 1).item(), *place),
        half_length=size if lymphocyte else 2.1 * size,
        half_width=0.95 * size if lymphocyte else uniform(generator, 0.9, 1.7, 1).item(),
        half_height=size if lymphocyte else 1.4,
        angle=heading + 0.25 * torch.randn(1, generator=generator).item(),
        unevenness=0.05 if lymphocyte else 0.09,
    )
    density = uniform(generator, 1.3, 1.8, 1) if lymphocyte else uniform(generator, 0.9, 1.4, 1)
    _stain_nucleus(haematoxylin, eosin, grid, body, density, texture, 0.35, generator)


def _stain_nucleus(
    haematoxylin: Tensor,
    eosin: Tensor,
    grid: Grid,
    body: Body,
    density: Tensor,
    texture: tuple[Tensor, Tensor],
    vesicular: float,
    generator: torch.Generator,
) -> None:
    """Put a nucleus of absorbance `density` in; `vesicular` says how much paler its inside is than its envelope."""
    window = window_of(body, grid, generator)
    if window is None:
        return
    fine, coarse = texture[0][window.slices], texture[1][window.slices]
    envelope = ((window.radius - 0.72) / 0.2).clamp(0.0, 1.0)
    inside = (1.0 - 0.45 * vesicular) * torch.exp(0.35 * fine + 0.35 * coarse).clamp(max=1.9)
    chromatin_amount = inside + vesicular * 0.55 * envelope
    count = int(torch.randint(1, 3, (1,), generator=generator)) if vesicular > 0.5 else 0
    spots = nucleoli(window, body, count, generator) if count else torch.zeros_like(window.radius)
    amount = window.coverage * density * (chromatin_amount + 0.7 * spots)
    haematoxylin[window.slices] = torch.maximum(haematoxylin[window.slices], amount)
    eosin[window.slices] *= 1.0 - 0.65 * window.coverage
    eosin[window.slices] += 0.25 * spots * window.coverage
