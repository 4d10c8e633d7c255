"""Figures of an evaluation, as PNG bytes: curves by depth and image panels on one grey scale.

matplotlib is imported when a figure is drawn, and only its Agg canvas: no display, no global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refocus.focus.plot import lettered
from refocus.model.evaluation import INPUT, EvaluationReport, Metric
from refocus.model.metrics import psnr, ssim

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image = npt.NDArray[Any]

NAMES: dict[Metric, str] = {
    "psnr_db": "PSNR (dB)",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "nrmse": "NRMSE",
    "pearson": "Pearson's r",
    "resolution_px": "FRC resolution (px)",
    "signal_ratio": "signal / truth",
}
_METHODS = {
    "unsharp": "unsharp mask",
    "wiener": "Wiener (true PSF)",
    "rl": "Richardson-Lucy (true PSF)",
    "deep_r": "Deep-R",
}
_BARS_UM = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
#: Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def depth_curves(report: EvaluationReport, modality: str, metrics: Sequence[Metric], methods: Sequence[str]) -> bytes:
    """Draw each metric over |z|, one line a method; simulated scenes only."""
    figure = new_figure(4.2 * len(metrics), 3.4)
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for order, method in enumerate(methods):
            row = row_of(report, method, metric)
            points = [
                (depth, value)
                for depth, band in _depths(report)
                if (value := report.mean(metric, row, band=band, modality=modality)) is not None
            ]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    markersize=3.5,
                    label=_METHODS.get(method, method),
                    color="#777777" if method == INPUT else _COLOURS[order % len(_COLOURS)],
                    linewidth=2.4 if method == report.model else 1.3,
                    linestyle="--" if method == INPUT else "-",
                )
        axis.set_xlabel("|z| (µm)")
        axis.set_ylabel(NAMES[metric])
        axis.grid(alpha=0.25)
        if metric == "resolution_px":
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter("{x:g}")
        if metric == "signal_ratio":
            axis.axhspan(0.98, 1.02, color="#009E73", alpha=0.12)
    axes[-1].legend(fontsize=7, frameon=False)
    return _png(figure)


def row_of(report: EvaluationReport, method: str, metric: Metric) -> str:
    """Return the row in which a method is at its best: classical ones have two, set for PSNR and for SSIM."""
    for_similarity = f"{method}_ssim"
    return for_similarity if metric in ("ssim", "ms_ssim") and for_similarity in report.methods else method


def interval_curves(report: EvaluationReport, modality: str) -> bytes | None:
    """Draw coverage and width of the judged model's interval over |z|, None where it gives none."""
    rows = [
        (
            depth,
            report.mean_of(lambda m: m.coverage, band=band, modality=modality),
            report.mean_of(lambda m: m.interval_width, band=band, modality=modality),
        )
        for depth, band in _depths(report)
    ]
    known = [(z, c, w) for z, c, w in rows if c is not None and w is not None]
    if not known:
        return None
    figure = new_figure(8.4, 3.2)
    left, right = figure.subplots(1, 2)
    depth, coverage, width = zip(*known, strict=True)
    left.axhspan(88, 92, color="#009E73", alpha=0.15)
    left.plot(depth, [100 * c for c in coverage], "o-", color=_COLOURS[0])
    left.set_ylabel("pixels inside the 90% interval (%)")
    left.set_ylim(70, 100)
    right.plot(depth, [100 * w for w in width], "o-", color=_COLOURS[1])
    right.set_ylabel("mean width (% of the truth's range)")
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.set_xlabel("|z| (µm)")
        axis.grid(alpha=0.25)
    return _png(figure)


def panels(
    images: Mapping[str, Image],
    truth: Image,
    *,
    title: str,
    pixel_size_um: float | None = None,
    largest_px: int = 256,
) -> bytes:
    """Draw images, how close each comes, and their differences from the truth.

    All images share the truth's grey scale, all differences one scale of a quarter of it, zero in the middle: what
    looks better is better, not stretched.

    Parameters
    ----------
    images : mapping of name to ndarray, shape [C, Y, X]
    truth : ndarray, shape [C, Y, X]
    title : str
    pixel_size_um : float, optional
        Draws a scale bar.
    largest_px : int
        Larger images are cut to their centre, never resampled.
    """
    low, high = (float(v) for v in np.percentile(truth, [0.1, 99.9]))
    high = max(high, low + 1e-9)
    shown = {**images, "truth": truth}
    figure = new_figure(2.5 * len(shown), 5.3)
    axes = figure.subplots(2, len(shown), squeeze=False)
    for column, (name, image) in enumerate(shown.items()):
        upper, lower = axes[0][column], axes[1][column]
        upper.imshow(
            _displayed(_centre(image, largest_px), low, high), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
        )
        said = "" if image is truth else f"\n{psnr(image, truth):.1f} dB, SSIM {ssim(image, truth):.3f}"
        upper.set_title(f"{_METHODS.get(name, name)}{said}", fontsize=8)
        difference = _centre(image - truth, largest_px).mean(0) / (high - low)
        drawn = lower.imshow(difference, cmap="RdBu_r", vmin=-0.25, vmax=0.25, interpolation="nearest")
        for axis in (upper, lower):
            axis.set_xticks([])
            axis.set_yticks([])
    axes[1][0].set_ylabel("difference from truth", fontsize=8)
    if pixel_size_um is not None:
        _scale_bar(axes[0][0], min(largest_px, truth.shape[-1]), min(largest_px, truth.shape[-2]), pixel_size_um)
    figure.colorbar(drawn, ax=list(axes[1]), shrink=0.8, label="share of the truth's range")
    figure.suptitle(lettered(title), fontsize=10)
    return _png(figure)


def _scale_bar(axis: Axes, width_px: int, height_px: int, pixel_size_um: float) -> None:
    """Draw a round number of micrometres, about a fifth of the width, at the lower right."""
    length_um = min(_BARS_UM, key=lambda bar: abs(bar - 0.2 * width_px * pixel_size_um))
    end, y = 0.95 * width_px, 0.93 * height_px
    for colour, width in (("black", 5), ("white", 3)):
        axis.plot([end - length_um / pixel_size_um, end], [y, y], color=colour, linewidth=width, solid_capstyle="butt")
    text = axis.text(
        end - 0.5 * length_um / pixel_size_um, y - 6, f"{length_um:g} µm", color="white", ha="center", fontsize=8
    )
    text.set_bbox({"facecolor": "black", "alpha": 0.5, "pad": 1, "linewidth": 0})


def series_curves(report: EvaluationReport, metric: Metric, methods: Sequence[str]) -> bytes | None:
    """Draw a metric over planes of measured focal series, one panel a specimen; None without any."""
    measured = [m for m in report.measurements if m.kind == "focal_series"]
    specimens = list(dict.fromkeys(m.specimen for m in measured))
    if not specimens:
        return None
    figure = new_figure(5.0 * len(specimens), 3.4)
    for axis, specimen in zip(figure.subplots(1, len(specimens), squeeze=False)[0], specimens, strict=True):
        for order, method in enumerate(methods):
            by_plane: dict[float, list[float]] = {}
            for m in measured:
                if m.specimen == specimen and m.method == method and getattr(m.score, metric) is not None:
                    by_plane.setdefault(_plane(m.band), []).append(getattr(m.score, metric))
            points = [(plane, float(np.mean(values))) for plane, values in by_plane.items()]
            if points:
                colour = "#777777" if method == INPUT else _COLOURS[order % len(_COLOURS)]
                axis.plot(
                    *zip(*sorted(points), strict=True),
                    "o-",
                    markersize=3,
                    label=_METHODS.get(method, method),
                    color=colour,
                )
        axis.set_title(lettered(specimen), fontsize=9)
        axis.set_xlabel("planes from focus, both sides")
        axis.set_ylabel(NAMES[metric])
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7, frameon=False)
    return _png(figure)


def _plane(band: str) -> float:
    return float(band.split()[0])


def _depths(report: EvaluationReport) -> list[tuple[float, str]]:
    found = {m.band: m.defocus_um for m in report.measurements if m.kind == "simulated" and m.defocus_um is not None}
    return sorted((depth, band) for band, depth in found.items())


def _centre(image: Image, largest: int) -> Image:
    y, x = (max(0, (s - largest) // 2) for s in image.shape[-2:])
    return image[:, y : y + largest, x : x + largest]


def _displayed(image: Image, low: float, high: float) -> Image:
    scaled = np.clip((image - low) / (high - low), 0, 1)
    return np.moveaxis(scaled, 0, -1) if len(image) == 3 else scaled.mean(0)


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of so many inches with a canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
