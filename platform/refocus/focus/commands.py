"""What ``refocus focus STACK`` prints and draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from refocus.errors import InputError
from refocus.focus.measures import measure_named
from refocus.focus.plane import InFocusPlane, as_grey, drift_correction, peak_of
from refocus.focus.tiles import FocusMap, focus_map
from refocus.focus.tilt import fit_tilt
from refocus.zstack import Acquisition

_BAR_CHARACTERS = 40
# A plane through fewer of the tiles than this share says more about the few than about the specimen.
_LEAST_TRUSTED_SHARE = 0.5


def report_focus(
    planes: Iterable[npt.NDArray[Any]],
    *,
    acquisition: Acquisition,
    name: str,
    measure: str,
    tile_px: int,
    plot: Path | None,
    console: Console,
) -> InFocusPlane:
    """Measure a series in one pass, print its curve, in-focus plane and tilt, and draw the curve to `plot`, if any.

    Raises
    ------
    InputError
        If there are fewer than two planes, or they cannot be measured.
    """
    from refocus.focus.plot import plot_focus

    measured = measure_named(measure)
    values: list[float] = []
    means: list[float] = []

    def watched() -> Iterator[npt.NDArray[Any]]:
        for plane in planes:
            grey = as_grey(plane)
            values.append(measured(grey))
            means.append(float(grey.mean(dtype=np.float64)))
            yield grey

    tiles = focus_map(watched(), tile_px=tile_px, measure=measure)
    if len(values) < 2:
        raise InputError(
            "one plane came; a series through focus is needed. Where the file calls its planes channels or times, say "
            "what they are (--axes ZYX)."
        )
    found = peak_of(np.asarray(values) * drift_correction(np.asarray(means), measure))
    console.print(f"{name}: {len(values)} planes, {measure}", markup=False)
    _print_curve(found, console)
    console.print(_said_of_tilt(tiles, acquisition))
    if plot is not None:
        plot_focus(found, plot, title=name, measure=measure, z_step_um=acquisition.z_step_um)
        console.print(f"The curve is drawn in {plot}.", markup=False)
    return found


def _print_curve(found: InFocusPlane, console: Console) -> None:
    lowest, height = found.curve.min(), float(np.ptp(found.curve)) or 1.0
    for z, value in enumerate(found.curve):
        bar = "#" * round(_BAR_CHARACTERS * (value - lowest) / height)
        console.print(f"{z:5d}  {value:12.5g}  {bar}{'  <' if z == found.index else ''}")
    if not np.ptp(found.curve):
        console.print("All planes are equally sharp: no structure to judge focus by.")
    elif found.at_edge:
        console.print(
            f"Sharpest at plane {found.index}, the edge of the series: focus may lie outside; do not train on it."
        )
    else:
        console.print(
            f"In focus at plane {found.position:.2f} (nearest {found.index}), confidence {found.confidence:.2f}."
        )


def _said_of_tilt(tiles: FocusMap, acquisition: Acquisition) -> str:
    try:
        tilt = fit_tilt(tiles)
    except InputError:
        return "No tilt can be told: too few tiles have a peak of their own."
    if tilt.tiles < _LEAST_TRUSTED_SHARE * tiles.position.size:
        return f"No tilt can be told: only {tilt.tiles} of {tiles.position.size} tiles have a peak to be trusted."
    across = abs(tilt.slope_y) * 2 * tiles.center_y_px[-1] + abs(tilt.slope_x) * 2 * tiles.center_x_px[-1]
    z_step_um, pixel_size_um = acquisition.z_step_um, acquisition.pixel_size_um
    angle = ""
    if z_step_um is not None and pixel_size_um is not None:
        angle = f", a tilt of {tilt.angle_deg(z_step_um=z_step_um, pixel_size_um=pixel_size_um):.2f} degrees"
    return (
        f"Focus moves by {across:.2f} planes across the image{angle}; tiles scatter by {tilt.spread:.2f} planes "
        f"({tilt.tiles} of {tiles.position.size} trusted)."
    )
