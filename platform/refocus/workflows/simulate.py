"""``refocus simulate``: a focal series of a procedural specimen, with its truth beside it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from refocus.errors import ConfigurationError
from refocus.io.writers import write_ome_tiff
from refocus.optics.simulate import Truth, simulate_focal_series
from refocus.wire.files import check_target

_SUFFIXES = (".ome.tif", ".ome.tiff", ".tif", ".tiff")


def write_simulation(
    target: Path,
    *,
    specimen: str,
    planes: int,
    z_step_um: float,
    size_px: int,
    tilt_deg: float,
    seed: int,
    console: Console,
    overwrite: bool = False,
) -> Truth:
    """Write a series to `target` as OME-TIFF, and its noise-free in-focus image to `truth_path`.

    Specimen, seed, tilt and the plane of focus stand in both files as a map annotation.

    Raises
    ------
    ConfigurationError
        If `target` has no TIFF suffix, it or its truth is there and `overwrite` is not asked for, or the series cannot
        be simulated.
    """
    beside = truth_path(target)
    for path in (target, beside):
        check_target(path, overwrite=overwrite)
    stack, truth = simulate_focal_series(
        specimen, planes=planes, z_step_um=z_step_um, size_px=(size_px, size_px), tilt_deg=tilt_deg, seed=seed
    )
    notes = {key: str(value) for key, value in stack.metadata.items()}
    write_ome_tiff(target, stack.pixels, stack.axes, stack.acquisition, notes=notes)
    write_ome_tiff(beside, truth.in_focus, stack.axes.removeprefix("Z"), stack.acquisition, notes=notes)
    console.print(
        f"{target}: {planes} planes of {specimen} every {z_step_um:g} um, {size_px} x {size_px} px, "
        f"in focus at plane {truth.focus_plane:g}. The truth is in {beside}."
    )
    return truth


def truth_path(target: Path) -> Path:
    """Where the truth of a simulated series lies.

    Examples
    --------
    >>> truth_path(Path("raw/tissue.ome.tif")).name
    'tissue.truth.ome.tif'
    """
    for suffix in _SUFFIXES:
        if target.name.lower().endswith(suffix):
            return target.with_name(target.name[: -len(suffix)] + ".truth.ome.tif")
    raise ConfigurationError(f"{target} would hold an OME-TIFF; expected a name that ends in {_SUFFIXES[0]}.")
