"""Fluorescent labels of whole cells: filaments, puncta, membranes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from refocus.optics.specimens.fields import edge, scattered, smooth_noise, splat, uniform
from refocus.optics.specimens.specimen import Grid, Specimen


def _voxels(grid: Grid, z_um: Tensor, y_um: Tensor, x_um: Tensor) -> Tensor:
    """Positions in voxels, [N, 3]."""
    z = z_um / grid.slice_um + (grid.slices - 1) / 2
    return torch.stack([z, y_um / grid.pixel_um - 0.5, x_um / grid.pixel_um - 0.5], -1)


def grow_filaments(grid: Grid, generator: torch.Generator) -> Specimen:
    """Microtubules of spread cells: many from an organising centre beside the nucleus, others free in the lamella.

    Those over the nucleus run up to 2 um higher than those in the flat rim.
    """
    emission = torch.zeros(grid.shape)
    step_um = 0.7 * grid.pixel_um
    radius_um = uniform(generator, 19.0, 30.0, 1).item()
    for y, x in _cell_centres(grid, radius_um, 1.15 * radius_um, generator):
        shape = _Outline.draw(radius_um, generator, lobed=0.16)
        count = int(torch.randint(130, 260, (1,), generator=generator))
        length_um = radius_um * uniform(generator, 0.35, 1.5, count)
        steps = math.ceil(1.5 * radius_um / step_um)
        central = torch.rand(count, generator=generator) < 0.45
        # From the organising centre they leave in all directions; free ones lie anywhere and point mostly outwards.
        turn = uniform(generator, 0.0, 2.0 * math.pi, count)
        out = radius_um * torch.where(
            central, 0.1 * torch.rand(count, generator=generator), uniform(generator, 0.15, 0.85, count)
        )
        organiser = 0.18 * radius_um * torch.randn(2, generator=generator)
        start_y = out * torch.sin(turn) + torch.where(central, organiser[0], torch.zeros(()))
        start_x = out * torch.cos(turn) + torch.where(central, organiser[1], torch.zeros(()))
        heading = torch.where(central, turn, turn + 0.7 * torch.randn(count, generator=generator))[:, None]
        # Stiff on the scale of a cell, with a steady curl of each one's own.
        curl = 0.045 * torch.randn(count, 1, generator=generator) * step_um
        bend = 0.16 * math.sqrt(step_um) * torch.randn(count, steps, generator=generator)
        heading = heading + torch.cumsum(curl + bend, 1)
        ys = start_y[:, None] + torch.cumsum(step_um * torch.sin(heading), 1)
        xs = start_x[:, None] + torch.cumsum(step_um * torch.cos(heading), 1)
        depth = shape.depth(ys, xs)
        top = uniform(generator, 0.0, 1.0, count, 1)
        height = -0.8 + 2.4 * top * torch.exp(-(((ys**2 + xs**2).sqrt() / (0.4 * radius_um)) ** 2))
        wiggle = 0.06 * torch.cumsum(torch.randn(count, steps, generator=generator), 1) * math.sqrt(step_um)
        alive = (torch.arange(steps) * step_um < length_um[:, None]) & (depth > 0.0)
        # One that has left the cell does not come back.
        alive = torch.cumprod(alive.to(torch.uint8), 1).bool()
        # Antibodies label in grains; some filaments are bundles.
        strength = torch.exp(0.35 * torch.randn(count, 1, generator=generator)) * (
            0.6 + 0.8 * torch.rand(count, steps, generator=generator)
        )
        place = _voxels(grid, height + wiggle, y + ys, x + xs)
        splat(emission, place[alive], (strength * step_um)[alive])
        # Free tubulin fills the cell and spares the nucleus.
        _cell_body(emission, grid, (y, x), shape, 0.02 * step_um, generator, nucleus_um=0.0)
    return Specimen.fluorescent("filaments", emission, grid)


def grow_puncta(grid: Grid, generator: torch.Generator) -> Specimen:
    """Vesicles and single molecules in cells: points, small blobs, a crowd beside the nucleus, over dim cytoplasm."""
    emission = torch.zeros(grid.shape)
    radius_um = uniform(generator, 12.0, 20.0, 1).item()
    spread = uniform(generator, 0.4, 0.9, 1).item()
    for y, x in _cell_centres(grid, radius_um, 1.45 * radius_um, generator):
        shape = _Outline.draw(radius_um, generator, lobed=0.2)
        nucleus_um = radius_um * uniform(generator, 0.3, 0.42, 1).item()
        count = int(torch.randint(50, 400, (1,), generator=generator))
        # A third crowds on one side of the nucleus, the rest is spread through the cell.
        side = uniform(generator, 0.0, 2.0 * math.pi, 1)
        crowded = torch.rand(count, generator=generator) < 0.33
        crowd = torch.stack([torch.sin(side), torch.cos(side)], -1) * 1.25 * nucleus_um
        near = crowd + 0.3 * nucleus_um * torch.randn(count, 2, generator=generator)
        anywhere = radius_um * (2.6 * torch.rand(count, 2, generator=generator) - 1.3)
        place = torch.where(crowded[:, None], near, anywhere)
        depth = shape.depth(place[:, 0], place[:, 1])
        out = place.norm(dim=1)
        keep = (depth > 0.03) & (out > nucleus_um * uniform(generator, 0.85, 1.05, count))
        place, depth = place[keep], depth[keep]
        height = uniform(generator, -1.0, 1.0, len(place)) * 2.2 * depth.clamp_min(0.05).sqrt()
        strength = torch.exp(spread * torch.randn(len(place), generator=generator))
        blob = torch.rand(len(place), generator=generator) < 0.3
        size_um = torch.where(blob, uniform(generator, 0.15, 0.45, len(place)), torch.zeros(len(place)))
        grains = 24
        offset = torch.randn(len(place), grains, 3, generator=generator) * size_um[:, None, None]
        centre = torch.stack([height, y + place[:, 0], x + place[:, 1]], -1)
        points = (centre[:, None] + offset).reshape(-1, 3)
        weight = (strength * (1.0 + 6.0 * size_um) / grains).repeat_interleave(grains)
        splat(emission, _voxels(grid, points[:, 0], points[:, 1], points[:, 2]), weight)
        _cell_body(emission, grid, (y, x), shape, 0.012, generator, nucleus_um=nucleus_um)
    return Specimen.fluorescent("puncta", emission, grid)


@dataclass(frozen=True, slots=True)
class _Outline:
    """A cell's rim about its centre: stretched, lobed."""

    radius_um: float
    stretch: float
    turn: float
    lobes: Tensor  # [orders, 2], cosine and sine amplitudes from order 2 on

    @classmethod
    def draw(cls, radius_um: float, generator: torch.Generator, *, lobed: float) -> _Outline:
        orders = torch.arange(2, 9, dtype=torch.float32)
        lobes = lobed * torch.randn(7, 2, generator=generator) / orders[:, None]
        return cls(
            radius_um * uniform(generator, 0.8, 1.15, 1).item(),
            uniform(generator, 1.0, 1.6, 1).item(),
            uniform(generator, 0.0, math.pi, 1).item(),
            lobes,
        )

    def depth(self, y: Tensor, x: Tensor) -> Tensor:
        """How far inside the rim a place relative to the centre lies: 1 at the centre, 0 on the rim, then negative."""
        along = (x * math.cos(self.turn) + y * math.sin(self.turn)) / math.sqrt(self.stretch)
        across = (y * math.cos(self.turn) - x * math.sin(self.turn)) * math.sqrt(self.stretch)
        around = torch.atan2(across, along)
        rim = torch.ones_like(around)
        for order, (cosine, sine) in enumerate(self.lobes.tolist(), start=2):
            rim = rim + cosine * torch.cos(order * around) + sine * torch.sin(order * around)
        return 1.0 - (along**2 + across**2).sqrt() / (self.radius_um * rim.clamp_min(0.3))


def _cell_centres(
    grid: Grid, radius_um: float, spacing_um: float, generator: torch.Generator
) -> list[tuple[float, float]]:
    """Centres (y, x) of cells that reach into the field."""
    beyond = 0.5 * radius_um
    height, width = grid.size_um
    centres = scattered((height + 2 * beyond, width + 2 * beyond), spacing_um, generator, tries=12)
    return [(y - beyond, x - beyond) for y, x in centres.tolist()]


def grow_membranes(grid: Grid, generator: torch.Generator) -> Specimen:
    """Borders of an epithelial sheet: leaning walls, brightest at the apical junctions, grainy along them."""
    spacing = uniform(generator, 8.0, 14.0, 1).item()
    size_um = grid.size_um
    margin = 2.0 * spacing
    centres = scattered((size_um[0] + 2 * margin, size_um[1] + 2 * margin), 0.8 * spacing, generator, tries=30) - margin
    lean = 0.12 * torch.randn(len(centres), 2, generator=generator)
    bend = [smooth_noise(grid.shape[1:], (grid.pixel_um,) * 2, 1.6, generator) * 0.4 for _ in range(2)]
    grain = smooth_noise(grid.shape, (grid.slice_um, grid.pixel_um, grid.pixel_um), 0.35, generator, rough=1.4)
    uneven = smooth_noise(grid.shape[1:], (grid.pixel_um,) * 2, 10.0, generator)
    thickness = 0.18
    y = grid.y_um()[:, None] + bend[0]
    x = grid.x_um() + bend[1]
    emission = torch.zeros(grid.shape)
    for index, z in enumerate(grid.z_um().tolist()):
        first, second, gap = _two_nearest(y, x, centres + lean * z, 2.2 * spacing, grid.pixel_um)
        # Distance from the bisector of the two nearest centres.
        border = (second - first) / (2.0 * gap)
        wall = torch.exp(-0.5 * (border / max(thickness, 0.45 * grid.pixel_um)) ** 2)
        apical = math.exp(-0.5 * ((z - 0.4) / 0.8) ** 2) + 0.25 * math.exp(-0.5 * (z / 2.2) ** 2)
        # A faint label on the top and bottom faces of the cells.
        face = 0.02 * (1.0 + 0.5 * grain[index]).clamp_min(0.0)
        emission[index] = apical * (wall * torch.exp(0.45 * grain[index]) + face) * torch.exp(0.3 * uneven)
    return Specimen.fluorescent("membranes", emission, grid)


def _two_nearest(
    y: Tensor, x: Tensor, centres: Tensor, reach_um: float, pixel_um: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances to the nearest and second nearest centre within reach, and the distance between those two."""
    height, width = y.shape
    first, second = torch.full_like(y, reach_um**2), torch.full_like(y, reach_um**2)
    owner, rival = torch.zeros(2, height, width, dtype=torch.int64)
    for index, (cy, cx) in enumerate(centres.tolist()):
        rows = slice(max(0, int((cy - reach_um) / pixel_um)), max(0, int((cy + reach_um) / pixel_um)))
        columns = slice(max(0, int((cx - reach_um) / pixel_um)), max(0, int((cx + reach_um) / pixel_um)))
        at = (rows, columns)
        squared = (y[at] - cy) ** 2 + (x[at] - cx) ** 2
        nearest, next_nearest = first[at], second[at]
        wins = squared < nearest
        places = (squared < next_nearest) & ~wins
        second[at] = torch.where(wins, nearest, torch.where(places, squared, next_nearest))
        rival[at] = torch.where(wins, owner[at], rival[at].masked_fill(places, index))
        first[at] = torch.where(wins, squared, nearest)
        owner[at] = owner[at].masked_fill(wins, index)
    gap = (centres[owner] - centres[rival]).norm(dim=-1)
    return first, second, gap.clamp_min(1e-3)


def _cell_body(
    emission: Tensor,
    grid: Grid,
    centre: tuple[float, float],
    shape: _Outline,
    amount: float,
    generator: torch.Generator,
    *,
    nucleus_um: float,
) -> None:
    """Add a dim dome of cytoplasm with a darker nucleus of the given radius."""
    y, x = grid.y_um() - centre[0], grid.x_um() - centre[1]
    reach = 2.0 * shape.radius_um
    rows, columns = ((along.abs() < reach).nonzero().flatten() for along in (y, x))
    if len(rows) == 0 or len(columns) == 0:
        return
    at = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    y, x = y[at[0]][:, None], x[at[1]]
    depth = shape.depth(y + 0.0 * x, x + 0.0 * y)
    grain = smooth_noise((depth.shape[0], depth.shape[1]), (grid.pixel_um,) * 2, 0.8, generator)
    body = amount * torch.exp(0.3 * grain) * edge(depth * shape.radius_um / grid.pixel_um)
    if nucleus_um:
        body = body * (1.0 - 0.7 * ((nucleus_um - (y**2 + x**2).sqrt()) / 0.8 + 0.5).clamp(0.0, 1.0))
    dome = 2.4 * depth.clamp_min(0.0).sqrt()
    for index, z in enumerate(grid.z_um().tolist()):
        emission[index][at] += body * edge((dome - abs(z)) / grid.slice_um)
