"""An evaluation as one HTML file that needs nothing else, and as the table of the documentation."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.model.evaluation import (
    INPUT,
    MORE_IS_BETTER,
    EvaluationReport,
    Measurement,
    Metric,
    paired_difference,
)
from refocus.training import figures
from refocus.training.baselines import BASELINES, best_settings
from refocus.training.evaluate import Method, restored_by
from refocus.training.scenes import SceneSettings, SharpImage, scenes_of

Image = npt.NDArray[Any]

_DIGITS: dict[Metric, int] = {"psnr_db": 2, "resolution_px": 2}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1180px; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .6rem 0 1.4rem } th, td { padding: .2rem .7rem; text-align: right }
th { border-bottom: 1px solid #999; font-weight: 600 } th:first-child, td:first-child { text-align: left }
tr.judged { background: #eef4fb; font-weight: 600 } td.best { color: #00603f; font-weight: 700 }
td.worse { color: #b03000 } img { max-width: 100%; margin: .4rem 0 } .small { color: #666; font-size: 13px }
"""


@dataclass(frozen=True, slots=True)
class Example:
    """A scene with what the methods made of it."""

    title: str
    images: Mapping[str, Image]
    truth: Image
    pixel_size_um: float | None = None


def examples_of(
    methods: Mapping[str, Method],
    images: Sequence[SharpImage],
    settings: SceneSettings,
    *,
    defocus_um: Sequence[float] = (2.0, 6.0),
) -> Iterable[Example]:
    """Yield examples at some depths and the first exposure, classical methods at the best setting of the very scene."""
    shown = settings.model_copy(update={"defocus_um": tuple(defocus_um), "photons": settings.photons[:1]})
    for scene in scenes_of(images, shown):
        best = best_settings([scene])
        restored = {INPUT: scene.image}
        for baseline in BASELINES[1:]:
            restored[baseline.name] = dict(best.rows(baseline, scene))[baseline.name]
        restored |= {name: restored_by(method, scene.image).pixels for name, method in methods.items()}
        title = f"{scene.specimen}, {scene.modality}, |z| = {scene.defocus_um:g} µm, {scene.photons:g} photons"
        yield Example(title, restored, scene.truth, settings.system.pixel_size_um)


def html_report(report: EvaluationReport, examples: Iterable[Example] = ()) -> str:
    """Return the report as one HTML page, figures inside."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>Refocus evaluation</title><style>{_STYLE}</style>",
        f"<h1>Evaluation{f' of {_text(report.model)}' if report.model else ''}</h1>",
        _provenance(report),
    ]
    methods = [m for m in report.methods if not m.endswith("_ssim")]
    for modality in report.modalities:
        if _bands(report, modality):
            parts.append(f"<h2>{_text(modality)}, simulated defocus of real images</h2>")
            parts.append(_image(figures.depth_curves(report, modality, ("psnr_db", "ssim", "ms_ssim"), methods)))
            others: tuple[Metric, ...] = ("resolution_px", "nrmse", "pearson", "signal_ratio")
            parts.append(_image(figures.depth_curves(report, modality, others, methods)))
            intervals = figures.interval_curves(report, modality)
            parts += [_image(intervals)] if intervals else []
            parts += [_table(report, metric, modality) for metric in figures.NAMES]
            parts.append(_trust(report, modality))
    series = figures.series_curves(report, "psnr_db", methods), figures.series_curves(report, "ssim", methods)
    if any(series):
        parts.append("<h2>Measured focal series</h2><p>Each plane restored and compared with the in-focus plane.</p>")
        specimens = ", ".join(dict.fromkeys(m.specimen for m in report.measurements if m.kind == "focal_series"))
        parts += [_image(s, specimens) for s in series if s]
    parts.append("<h2>Examples</h2><p class=small>One grey scale a row, from the truth; differences at ±25% of it.</p>")
    for e in examples:
        parts.append(_image(figures.panels(e.images, e.truth, title=e.title, pixel_size_um=e.pixel_size_um), e.title))
    parts.append(_settings(report))
    return "\n".join(parts)


def markdown_table(report: EvaluationReport, metric: Metric, modality: str, methods: Sequence[str] = ()) -> str:
    """Return one metric by method and band as a Markdown table."""
    bands = _bands(report, modality)
    lines = [f"| {figures.NAMES[metric]} | {' | '.join(bands)} |", "|---" * (len(bands) + 1) + "|"]
    for method in methods or report.methods:
        values = [report.mean(metric, method, band=b, modality=modality) for b in bands]
        lost = [_lost(report, metric, method, band, modality) for band in bands]
        if any(v is not None for v in values) or any(lost):
            cells = (f"{_number(value, metric)} {said}".strip() for value, said in zip(values, lost, strict=True))
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def trust_table(report: EvaluationReport, modality: str) -> str:
    """Return what the judged model says of itself, checked, by band as a Markdown table, empty without any."""
    return _markdown(_bands(report, modality), _trust_rows(report, modality))


def gain_table(report: EvaluationReport, modality: str) -> str:
    """Return the judged model's gain over the input by band as a Markdown table, intervals over specimens."""
    return _markdown(_bands(report, modality), _gain_rows(report, modality))


def _trust_rows(report: EvaluationReport, modality: str) -> list[tuple[str, list[str]]]:
    readers: dict[str, Callable[[Measurement], float | None]] = {
        "coverage of the 90% interval (%)": lambda m: None if m.coverage is None else 100 * m.coverage,
        "interval width (% of range)": lambda m: None if m.interval_width is None else 100 * m.interval_width,
        "true blur radius (px)": lambda m: m.true_blur_px,
        "predicted blur radius (px)": lambda m: m.predicted_blur_px,
        "tiles flagged (%)": lambda m: None if m.flagged_share is None else 100 * m.flagged_share,
        "re-blur residual": lambda m: m.residual,
    }
    rows = []
    for name, read in readers.items():
        values = [report.mean_of(read, band=b, modality=modality) for b in _bands(report, modality)]
        if any(v is not None for v in values):
            rows.append((name, ["" if v is None else f"{v:.3g}" for v in values]))
    return rows


def _gain_rows(report: EvaluationReport, modality: str) -> list[tuple[str, list[str]]]:
    if report.model is None or report.model == INPUT:
        return []
    rows = []
    metrics: tuple[tuple[Metric, int], ...] = (("psnr_db", 2), ("ssim", 3))
    for metric, digits in metrics:
        cells = []
        for band in _bands(report, modality):
            after, before = (report.by_specimen(metric, m, band=band, modality=modality) for m in (None, INPUT))
            gain = paired_difference(after, before)
            cells.append(f"{gain.mean:+.{digits}f} ({gain.low:+.{digits}f} to {gain.high:+.{digits}f})")
        rows.append((f"gain in {figures.NAMES[metric]}", cells))
    return rows


def _markdown(bands: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    if not rows:
        return ""
    head = [f"| | {' | '.join(bands)} |", "|---" * (len(bands) + 1) + "|"]
    return "\n".join([*head, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows)])


def _bands(report: EvaluationReport, modality: str) -> list[str]:
    """Simulated depths of a modality, nearest first."""
    found = {m.band: m.defocus_um for m in report.measurements if m.kind == "simulated" and m.modality == modality}
    return sorted(found, key=lambda band: found[band] or 0.0)


def series_table(report: EvaluationReport, metric: Metric) -> str:
    """Return the mean over the planes of each measured focal series by method as a Markdown table."""
    measured = [m for m in report.measurements if m.kind == "focal_series"]
    specimens = list(dict.fromkeys(m.specimen for m in measured))
    lines = [f"| {figures.NAMES[metric]} | {' | '.join(specimens)} |", "|---" * (len(specimens) + 1) + "|"]
    for method in dict.fromkeys(m.method for m in measured):
        cells = []
        for specimen in specimens:
            values = [getattr(m.score, metric) for m in measured if m.method == method and m.specimen == specimen]
            known = [v for v in values if v is not None]
            cells.append(_number(float(np.mean(known)) if known else None, metric))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _table(report: EvaluationReport, metric: Metric, modality: str) -> str:
    bands = _bands(report, modality)
    values = {(m, b): report.mean(metric, m, band=b, modality=modality) for m, b in product(report.methods, bands)}
    sign = 1 if MORE_IS_BETTER.get(metric, True) else -1
    rows = []
    for method in report.methods:
        cells = []
        for band in bands:
            value = values[method, band]
            known = [v for m in report.methods if (v := values[m, band]) is not None]
            before = values.get((INPUT, band))
            mark = ""
            if value is not None and metric in MORE_IS_BETTER:
                if sign * value >= max(sign * v for v in known):
                    mark = " class=best"
                elif before is not None and sign * value < sign * before - 1e-9:
                    mark = " class=worse"
            lost = _lost(report, metric, method, band, modality)
            cells.append(f"<td{mark}>{f'{_number(value, metric)} {lost}'.strip()}</td>")
        judged = " class=judged" if method == report.model else ""
        rows.append(f"<tr{judged}><td>{_text(method)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{_text(b)}</th>" for b in bands)
    return f"<table><tr><th>{figures.NAMES[metric]}</th>{head}</tr>{''.join(rows)}</table>"


def _trust(report: EvaluationReport, modality: str) -> str:
    rows = [*_gain_rows(report, modality), *_trust_rows(report, modality)]
    if not rows:
        return ""
    head = "".join(f"<th>{_text(b)}</th>" for b in _bands(report, modality))
    body = "".join(f"<tr><td>{_text(n)}</td>{''.join(f'<td>{v}</td>' for v in values)}</tr>" for n, values in rows)
    return (
        f"<table><tr><th>{_text(report.model)}</th>{head}</tr>{body}</table>"
        "<p class=small>Gains: mean over specimens, 95% bootstrap interval over specimens.</p>"
    )


def _provenance(report: EvaluationReport) -> str:
    p = report.provenance
    optics = (
        f"NA {p.numerical_aperture:g}, {p.pixel_size_um:g} µm pixels, {p.wavelength_um:g} µm light. "
        if p.numerical_aperture and p.pixel_size_um and p.wavelength_um
        else ""
    )
    speed = "".join(
        f"<li>{_text(name)}: {s.ms_per_megapixel:.0f} ms per megapixel ({_text(s.device)}, {s.threads} threads)"
        for name, s in report.speed.items()
    )
    seam = (
        f"<li>whole against tiled: at most {report.seam.largest_grey_levels:.3f} grey levels of 8 bits"
        if report.seam
        else ""
    )
    return (
        f"<p>{_text(p.images)}. {optics}Seed {p.seed}, commit {_text(p.commit)}, {p.created:%Y-%m-%d %H:%M} UTC, "
        f"{_text(p.machine)}{f', model {_text(report.digest[:12])}' if report.digest else ''}.</p>"
        "<p class=small>Intensities are compared without any fit; the data range is the truth's. Classical "
        "methods are given the true PSF and, for each depth and exposure, the setting that scores best on these very "
        "images. Green: best of the column; red: worse than the input.</p>"
        f"<ul>{speed}{seam}{''.join(f'<li>{_text(n)}' for n in p.notes)}</ul>"
    )


def _settings(report: EvaluationReport) -> str:
    if not report.settings:
        return ""
    rows = "".join(f"<tr><td>{_text(k)}</td><td>{_text(v)}</td></tr>" for k, v in report.settings.items())
    return f"<details><summary>Settings of the classical methods</summary><table>{rows}</table></details>"


def _image(png: bytes, said: str = "") -> str:
    """A figure, and a line below it: names may have letters that its font lacks."""
    picture = f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    return picture + (f"<p class=small>{_text(said)}</p>" if said else "")


def _number(value: float | None, metric: Metric) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.{_DIGITS.get(metric, 3)}f}"


def _lost(report: EvaluationReport, metric: Metric, method: str, band: str, modality: str) -> str:
    """Say of how many images nothing is resolved: the mean is that of the others."""
    if metric != "resolution_px":
        return ""
    lost = sum(report.without_value(metric, method, band=band, modality=modality).values())
    return f"({lost} unresolved)" if lost else ""


def _text(value: object) -> str:
    return html.escape(str(value))
