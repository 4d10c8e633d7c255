"""Specimens by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from refocus.errors import ConfigurationError
from refocus.optics.specimens.cells import grow_filaments, grow_membranes, grow_puncta
from refocus.optics.specimens.mosaic import grow_mosaic, grow_stained_mosaic
from refocus.optics.specimens.nuclei import grow_nuclei
from refocus.optics.specimens.specimen import Grid, Specimen
from refocus.optics.specimens.tissue import grow_tissue
from refocus.zstack import Modality


@dataclass(frozen=True, slots=True)
class Kind:
    """How a specimen is grown, and how thick it is."""

    grow: Callable[[Grid, torch.Generator], Specimen]
    depth_um: float
    modality: Modality
    about: str


SPECIMENS: dict[str, Kind] = {
    "nuclei": Kind(grow_nuclei, 5.0, "fluorescence", "nuclei of a monolayer under a DNA dye"),
    "filaments": Kind(grow_filaments, 5.0, "fluorescence", "microtubules of spread cells"),
    "puncta": Kind(grow_puncta, 5.0, "fluorescence", "vesicles and single molecules"),
    "membranes": Kind(grow_membranes, 5.0, "fluorescence", "borders of an epithelial sheet"),
    "mosaic": Kind(grow_mosaic, 1.0, "fluorescence", "overlapping flat shapes of all sizes"),
    "tissue": Kind(grow_tissue, 4.0, "brightfield", "a section under haematoxylin and eosin"),
    "stained_mosaic": Kind(grow_stained_mosaic, 1.0, "brightfield", "the same shapes in three dyes at random"),
}


def grow(
    kind: str, *, size_px: tuple[int, int], pixel_size_um: float, slice_um: float = 0.5, seed: int = 0
) -> Specimen:
    """Grow a specimen.

    Parameters
    ----------
    kind : str
        One of `SPECIMENS`.
    size_px : (int, int)
        Height and width.
    pixel_size_um, slice_um : float
        Sides of a voxel.
    seed : int
        Equal seeds give equal specimens.

    Returns
    -------
    Specimen

    Raises
    ------
    ConfigurationError
        If the kind is not known, or a size is not positive.
    """
    if kind not in SPECIMENS:
        raise ConfigurationError(f"specimen {kind!r} is not known; expected one of {', '.join(SPECIMENS)}.")
    if min(size_px) < 8 or pixel_size_um <= 0 or slice_um <= 0:
        raise ConfigurationError(
            f"a specimen of {size_px} px at {pixel_size_um} um and slices of {slice_um} um cannot be grown; "
            "expected at least 8 x 8 px and positive distances."
        )
    entry = SPECIMENS[kind]
    grid = Grid.spanning(entry.depth_um, size_px, slice_um=slice_um, pixel_um=pixel_size_um)
    return entry.grow(grid, torch.Generator().manual_seed(seed))
