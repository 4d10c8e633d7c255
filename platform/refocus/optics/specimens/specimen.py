"""A specimen as a value: where its light comes from, or what absorbs it, slice by slice."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refocus.errors import InputError
from refocus.optics.brightfield import Stain
from refocus.zstack import Modality


@dataclass(frozen=True, slots=True)
class Grid:
    """Voxels of a specimen: `slices` of `height` x `width`, centred on z = 0.

    Sides are in micrometres: `slice_um` along z, `pixel_um` along y and x.
    """

    slices: int
    height: int
    width: int
    slice_um: float
    pixel_um: float

    @classmethod
    def spanning(cls, depth_um: float, size_px: tuple[int, int], *, slice_um: float, pixel_um: float) -> Grid:
        """An odd number of slices that reach `depth_um` from the lowest to the highest."""
        return cls(2 * math.ceil(0.5 * depth_um / slice_um) + 1, *size_px, slice_um, pixel_um)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        return self.slices, self.height, self.width

    @property
    def size_um(self) -> tuple[float, float]:
        """Height and width of the field."""
        return self.height * self.pixel_um, self.width * self.pixel_um

    def z_um(self) -> Tensor:
        """Height of each slice above the middle, shape [Z]."""
        return (torch.arange(self.slices) - (self.slices - 1) / 2) * self.slice_um

    def y_um(self) -> Tensor:
        """Rows, shape [H], from 0."""
        return (torch.arange(self.height) + 0.5) * self.pixel_um

    def x_um(self) -> Tensor:
        """Columns, shape [W], from 0."""
        return (torch.arange(self.width) + 0.5) * self.pixel_um


@dataclass(frozen=True, slots=True)
class Specimen:
    """A specimen in three dimensions.

    Attributes
    ----------
    kind : str
    modality : {'fluorescence', 'brightfield'}
    light : Tensor, shape [Z, H, W] or [Z, S, H, W]
        Fluorescence: emission of each voxel, the brightest column summing to 1. Brightfield: amount of each of S
        stains in each voxel.
    stains : tuple of Stain
        Empty in fluorescence.
    slice_um, pixel_size_um : float
    focus_um : float
        Height above slice 0 that a microscopist would focus on: the centre of mass along z.
    """

    kind: str
    modality: Modality
    light: Tensor
    stains: tuple[Stain, ...]
    slice_um: float
    pixel_size_um: float
    focus_um: float

    @classmethod
    def fluorescent(cls, kind: str, emission: Tensor, grid: Grid) -> Specimen:
        """Scale `emission` [Z, H, W] so that its brightest column, hot spots apart, sums to 1."""
        column = emission.sum(0)
        # The brightest 0.1% may shine brighter: labels do have hot spots.
        count = max(1, round(0.001 * column.numel()))
        peak = column.flatten().topk(count).values[-1].clamp_min(1e-12)
        return cls(kind, "fluorescence", emission / peak, (), grid.slice_um, grid.pixel_um, _centre(emission, grid))

    @classmethod
    def stained(cls, kind: str, amounts: Tensor, stains: tuple[Stain, ...], grid: Grid) -> Specimen:
        """Amounts [Z, S, H, W] of `stains`."""
        focus = _centre(amounts.sum(1), grid)
        return cls(kind, "brightfield", amounts, stains, grid.slice_um, grid.pixel_um, focus)

    def tilted(self, angle_deg: float, azimuth_deg: float = 0.0) -> Specimen:
        """Lean the specimen about the field's centre, adding slices for what rises and sinks.

        Columns are sheared along z with linear interpolation, which holds light and, below 10 degrees, shape.

        Parameters
        ----------
        angle_deg : float
            Between the specimen's plane and the focal plane; under 45 degrees.
        azimuth_deg : float
            Direction of steepest rise: 0 along columns (x), 90 along rows (y).
        """
        if not -45 < angle_deg < 45:
            raise InputError(f"angle_deg is {angle_deg}; expected less than 45 degrees either way.")
        height, width = self.light.shape[-2:]
        rise = math.tan(math.radians(angle_deg)) * self.pixel_size_um / self.slice_um
        across = (torch.arange(width) - (width - 1) / 2) * (rise * math.cos(math.radians(azimuth_deg)))
        down = (torch.arange(height) - (height - 1) / 2) * (rise * math.sin(math.radians(azimuth_deg)))
        lift = down[:, None] + across
        extra = math.ceil(lift.abs().max().item())
        if extra == 0:
            return self
        moved = self.light.new_zeros((len(self.light) + 2 * extra, *self.light.shape[1:]))
        lower = lift.floor().to(torch.int64)
        part = lift - lower
        for index, layer in enumerate(self.light):
            for step, share in ((0, 1.0 - part), (1, part)):
                place = (index + extra + lower + step).clamp(0, len(moved) - 1).expand(layer.shape)
                moved.scatter_add_(0, place[None], (layer * share)[None])
        return replace(self, light=moved, focus_um=self.focus_um + extra * self.slice_um)


def _centre(light: Tensor, grid: Grid) -> float:
    """Height of the centre of mass above slice 0."""
    weight = light.sum((1, 2)).double()
    if weight.sum() <= 0:
        return 0.5 * (grid.slices - 1) * grid.slice_um
    heights = torch.arange(grid.slices, dtype=torch.float64) * grid.slice_um
    return float((weight * heights).sum() / weight.sum())
