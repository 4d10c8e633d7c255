"""``refocus explain``: one page that shows what a restoration rests on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from refocus.errors import ConfigurationError, UnsupportedImage
from refocus.model.colors import colors_held
from refocus.model.explanation import Explanation, Image, explain
from refocus.serving.config import ServingConfig
from refocus.serving.requests import optics_of
from refocus.serving.restorer import Restorer, catalog_of
from refocus.training.figures import new_figure
from refocus.wire.codec import decode
from refocus.wire.files import check_target, naming, whole_file
from refocus.wire.image import OWN_MACHINE
from refocus.workflows.restore import OpticsOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from refocus.optics.settings import OpticalSystem

_BLUE, _RED, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
#: Nats beyond which a radius is out of the question, however far.
_MOST_NATS = 60.0
#: Blurs below which no ratio says anything, in px, and the ratio from which on two of them contradict each other.
_LEAST_COMPARED_PX, _MOST_APART = 2.0, 1.5
#: Zeros that are marked; those beyond lie in noise.
_ZEROS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainOptions(OpticsOptions):
    """What is explained; of the optics as :class:`refocus.workflows.restore.OpticsOptions`.

    Parameters
    ----------
    model : str or None
        ``NAME``, ``NAME@champion`` or ``NAME@DIGEST``.
    plane : int
        Of the file's planes, from 0.
    at : (row, column) or None
        The square lies about this pixel; None takes where spectra tell most.
    overwrite : bool
        Whether a picture that is there may be replaced.
    """

    model: str | None = None
    plane: int = 0
    at: tuple[int, int] | None = None
    overwrite: bool = False


def explain_file(source: Path, target: Path, options: ExplainOptions, console: Console) -> Explanation:
    """Restore a plane of a file, and write what stands behind it as PNG.

    Raises
    ------
    ConfigurationError
        If the file is not there, or the picture would be no PNG or replace what it must not.
    UnsupportedImage
        If the file has no such plane.
    """
    if not source.is_file():
        raise ConfigurationError(f"{source} is no file; expected an image.")
    check_target(target, source, overwrite=options.overwrite, suffixes=(".png",))
    with naming(source):
        image = decode(source.read_bytes(), OWN_MACHINE)
        if not 0 <= options.plane < len(image.planes):
            held = f"{len(image.planes)} plane{'s' if len(image.planes) > 1 else ''}, counted from 0"
            raise UnsupportedImage(f"{source} has {held}; plane {options.plane} was asked for.")
        optics = optics_of(image, **options.told)
        config = ServingConfig(limits=OWN_MACHINE)
        served = Restorer(config, catalog_of(config)).models.pick(options.model, None, colors_held(image.planes), None)
        found = explain(image.planes[options.plane], served.runner, optics=optics, at=options.at)
    with whole_file(target) as unfinished:
        draw_explanation(found).savefig(unfinished, format="png")
    console.print(f"{said_of(found, optics)} (model {served.name} {found.digest[:12]})\n{target} written", markup=False)
    return found


def said_of(found: Explanation, optics: OpticalSystem | None) -> str:
    """What is said of it in one line: the blur by both accounts, and how sure the result is."""
    if not np.ptp(found.given):
        return "all pixels of the square are alike: no structure to judge a blur by"
    told = f"told NA {optics.numerical_aperture:g}" if optics else f"NA near {found.profile.numerical_aperture:g}"
    blurs = found.radius_px, found.predicted_radius_px
    doubt = ""
    if min(blurs) > _LEAST_COMPARED_PX and max(blurs) > _MOST_APART * min(blurs):
        doubt = ": they disagree, so look at the evidence before you trust the result"
    processed = "" if found.noise is None else f"; processed: its noise falls from {found.noise.cutoff_per_px:g}/px on"
    return (
        f"blur {found.radius_px:.1f} px ({told}), the network says {found.predicted_radius_px:.1f} px{doubt}"
        f"{processed}; interval +-{float(np.mean(found.half_width)):.4g} in the mean"
    )


def draw_explanation(found: Explanation) -> Figure:
    """Draw it: images in one grey scale above, evidence and doubts below."""
    figure = new_figure(12.8, 6.6)
    upper, lower = figure.subplots(2, 4)
    low, high = (float(level) for level in np.percentile(found.restored, [0.2, 99.8]))
    high = max(high, low + 1e-9)
    shown = {
        "as it came": found.given,
        "inverse filter alone": found.filtered,
        "Richardson-Lucy alone": found.deconvolved,
        "refocused": found.restored,
    }
    for axis, (name, image) in zip(upper, shown.items(), strict=True):
        axis.set_title(name if image is not None else f"{name}: not seen by this network", fontsize=9)
        if image is not None:
            axis.imshow(np.clip((image - low) / (high - low), 0, 1), cmap="gray", vmin=0, vmax=1)
        axis.set_axis_off()
    _draw_spectrum(lower[0], found)
    _draw_radii(lower[1], found)
    span = high - low
    for axis, image, title, scale in (
        (lower[2], found.restored - found.given, "what was changed", {"cmap": "RdBu_r", "vmin": -0.5, "vmax": 0.5}),
        (lower[3], found.half_width, "half width of the 90% interval", {"cmap": "viridis", "vmin": 0.0}),
    ):
        drawn = axis.imshow(_grey(image) / span, **scale)
        axis.set_title(f"{title} (of the range)", fontsize=9)
        axis.set_axis_off()
        figure.colorbar(drawn, ax=axis, location="bottom", shrink=0.85, aspect=30, pad=0.03).ax.tick_params(labelsize=7)
    figure.suptitle(
        f"rows {found.rows.start} to {found.rows.stop - 1}, columns {found.columns.start} to {found.columns.stop - 1}; "
        f"optics {'told' if found.told else 'not known'}; model {found.digest[:12]}",
        fontsize=10,
    )
    return figure


def _draw_spectrum(axis: Axes, found: Explanation) -> None:
    power = found.power / max(float(found.power.max()), 1e-30)
    zeros = found.zeros_cycles_per_px[:_ZEROS]
    axis.semilogy(found.cycles_per_px, np.maximum(power, 1e-12), color="black", linewidth=1.0)
    for number, zero in enumerate(zeros):
        label = f"a blur of {found.radius_px:.1f} px leaves nothing" if number == 0 else None
        axis.axvline(float(zero), color=_RED, linewidth=0.8, label=label)
    axis.set_xlim(0.0, min(0.5, 1.3 * float(zeros.max(initial=0.1))))
    axis.set_ylim(0.3 * float(np.median(power[-len(power) // 4 :])) + 1e-12, 3.0)
    falls = "" if found.noise is None else f", noise falls from {found.noise.cutoff_per_px:g}/px on"
    axis.set_title(f"power spectrum: rings of zeros{falls}", fontsize=9)
    axis.set_xlabel("cycles per pixel", fontsize=8)
    axis.tick_params(labelsize=7)
    if len(zeros):
        axis.legend(fontsize=7, frameon=False)


def _draw_radii(axis: Axes, found: Explanation) -> None:
    total = found.spectrum_nats - found.light_nats
    for values, colour, label in (
        (found.spectrum_nats, _BLUE, "the spectrum"),
        (-found.light_nats, _GREEN, "light, never negative"),
        (total - total.min(), "black", "both"),
    ):
        axis.semilogx(found.radii_px, -np.minimum(values, _MOST_NATS), color=colour, linewidth=1.2, label=label)
    axis.axvline(found.radius_px, color=_RED, linewidth=1.0, label=f"taken: {found.radius_px:.1f} px")
    axis.axvline(
        found.predicted_radius_px,
        color=_GREY,
        linestyle="--",
        linewidth=1.0,
        label=f"the network: {found.predicted_radius_px:.1f} px",
    )
    axis.set_title("how likely each blur is (nats)", fontsize=9)
    axis.set_xlabel("radius (px)", fontsize=8)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.tick_params(labelsize=7)
    axis.set_ylim(-1.05 * _MOST_NATS, 0.75 * _MOST_NATS)
    axis.legend(fontsize=7, frameon=False, loc="upper left")


def _grey(image: Image) -> Image:
    return image.mean(-1) if image.ndim == 3 else image
