"""A focus curve as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from refocus.focus.plane import InFocusPlane
from refocus.wire.files import whole_file


def lettered(text: str) -> str:
    """Return a name as a figure can show it: ``?`` for what the font lacks, no mathematics between dollars.

    Examples
    --------
    >>> lettered("細胞_$1.tif")
    '??_\\\\$1.tif'
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    return "".join(letter if letter == "\n" or ord(letter) in known else "?" for letter in text).replace("$", r"\$")


def plot_focus(found: InFocusPlane, path: Path, *, title: str, measure: str, z_step_um: float | None = None) -> None:
    """Draw the curve of a series and its in-focus plane as PNG.

    Parameters
    ----------
    found : InFocusPlane
    path : Path
        Written over if it is there.
    title, measure : str
    z_step_um : float or None
        Adds an axis of distances from focus where known.
    """
    # The object interface with a canvas of its own: pyplot would keep state and might look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(np.arange(len(found.curve)), found.curve, "o-", color="#2f5d8a", markersize=4, linewidth=1.2)
    label = f"plane {found.position:.2f}, confidence {found.confidence:.2f}"
    if found.at_edge:
        label = f"plane {found.index}: at the edge, focus may lie outside"
    axes.axvline(found.position, color="#c0392b", linestyle="--" if found.at_edge else "-", linewidth=1, label=label)
    axes.set(title=lettered(title), xlabel="plane", ylabel=measure.replace("_", " "))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    if z_step_um is not None:
        step, focus = z_step_um, found.position

        def to_um(plane: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return (plane - focus) * step

        def to_plane(distance_um: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return distance_um / step + focus

        axes.secondary_xaxis("top", functions=(to_um, to_plane)).set_xlabel("distance from focus (µm)")  # type: ignore[arg-type]
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png")
