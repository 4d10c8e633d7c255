"""Overlapping flat shapes of all sizes: no specimen in particular, but edges, corners and plains of every kind.

Dead leaves (Matheron 1968) have the statistics of natural images (Lee, Mumford and Huang, Int. J. Comput. Vis. 41, 35,
2001), and networks restore real images well that have seen nothing else (Achddou, Gousseau and Ladjal 2021). Training
images of one field are alike; these are like none of them, and sharp to the pixel where pixels are coarse.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from refocus.optics.brightfield import Stain
from refocus.optics.specimens.fields import uniform
from refocus.optics.specimens.specimen import Grid, Specimen

#: Leaves are drawn on a grid so many times as fine, which softens their edges by a pixel.
_FINER = 2
_SMALLEST_PX = 2.0
#: Enough to cover any field that is meant to be covered.
_MOST_LEAVES = 20_000


def grow_mosaic(grid: Grid, generator: torch.Generator) -> Specimen:
    """Shining leaves in one plane, covering everything or lying apart on dark ground."""
    owner, shade = _leaves(grid, generator)
    brightness = torch.rand(int(owner.max()) + 2, generator=generator) ** _drawn(generator, 0.5, 3.0)
    # The last one is the ground, which -1 stands for.
    brightness[-1] = _drawn(generator, 0.0, 0.1)
    emission = torch.zeros(grid.shape)
    emission[grid.slices // 2] = F.avg_pool2d((brightness[owner] * shade)[None], _FINER)[0]
    return Specimen.fluorescent("mosaic", emission, grid)


def grow_stained_mosaic(grid: Grid, generator: torch.Generator) -> Specimen:
    """The same of three dyes that no section was ever stained with, each leaf of a mixture of its own."""
    owner, shade = _leaves(grid, generator)
    mixtures = 0.4 * uniform(generator, 0.02, 1.0, int(owner.max()) + 2, 3).log().neg()
    mixtures[-1] = _drawn(generator, 0.0, 0.05)
    dyes = tuple(
        Stain(f"dye {number}", (red, green, blue))
        for number, (red, green, blue) in enumerate(uniform(generator, 0.02, 0.8, 3, 3).tolist())
    )
    amounts = torch.zeros(grid.slices, 3, *grid.shape[1:])
    amounts[grid.slices // 2] = F.avg_pool2d((mixtures[owner] * shade[..., None]).movedim(-1, 0), _FINER)
    return Specimen.stained("stained_mosaic", amounts, dyes, grid)


def _leaves(grid: Grid, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which leaf is seen at each place, -1 being none, and how it is shaded; on a grid `_FINER` times as fine."""
    height, width = (_FINER * side for side in grid.shape[1:])
    owner = torch.full((height, width), -1)
    shade = torch.ones(height, width)
    smallest = _FINER * _SMALLEST_PX
    largest = max(0.25 * min(height, width), 2.0 * smallest)
    # Areas of leaves of each size are alike at an exponent of 3, few large ones at more.
    power = 1.0 - _drawn(generator, 2.2, 3.2)
    covered = 0.97 if _drawn(generator, 0.0, 1.0) < 0.6 else _drawn(generator, 0.1, 0.7)
    open_places = height * width
    for number in range(_MOST_LEAVES):
        if open_places <= (1.0 - covered) * height * width:
            break
        drawn = torch.rand(7, generator=generator).tolist()
        radius = (smallest**power + drawn[0] * (largest**power - smallest**power)) ** (1.0 / power)
        y, x = drawn[1] * height, drawn[2] * width
        at = tuple(
            slice(max(0, int(centre - radius) - 1), min(side, int(centre + radius) + 2))
            for centre, side in ((y, height), (x, width))
        )
        along, across = _turned(at, y, x, math.pi * drawn[3])
        # In front is what was drawn first.
        new = _inside(along / radius, across / radius, drawn[4], 0.4 + 0.6 * drawn[5]) & (owner[at] < 0)
        open_places -= int(new.sum())
        owner[at] = owner[at].masked_fill(new, number)
        slope = 0.5 * (drawn[6] - 0.5)
        shade[at] = torch.where(new, torch.exp(slope * along / radius), shade[at])
    return owner, shade


def _turned(at: tuple[slice, ...], y: float, x: float, angle: float) -> tuple[Tensor, Tensor]:
    """Distances from a centre along and across a direction, over a window."""
    down, right = (torch.arange(part.start, part.stop) - centre for part, centre in zip(at, (y, x), strict=True))
    return (
        right * math.cos(angle) + down[:, None] * math.sin(angle),
        down[:, None] * math.cos(angle) - right * math.sin(angle),
    )


def _inside(along: Tensor, across: Tensor, kind: float, aspect: float) -> Tensor:
    """Ellipses mostly, some rectangles and some threads; in units of the radius."""
    if kind < 0.7:
        return along.square() + (across / aspect).square() < 1.0
    if kind < 0.85:
        return (along.abs() < 0.8) & (across.abs() < 0.6 * aspect)
    return (along.abs() < 1.0) & (across.abs() < 0.1)


def _drawn(generator: torch.Generator, low: float, high: float) -> float:
    return uniform(generator, low, high, 1).item()
