"""The record of an evaluation: every measurement by method, specimen and depth, and what follows from them.

A report keeps single measurements, not averages, so that the promotion gate can bootstrap over specimens and two
reports of the same images can be compared pair by pair. It travels as ``evaluation.json`` beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from refocus.errors import InputError

Metric = Literal["psnr_db", "ssim", "ms_ssim", "nrmse", "pearson", "resolution_px", "signal_ratio"]
#: True where more is better.
MORE_IS_BETTER: dict[Metric, bool] = {
    "psnr_db": True,
    "ssim": True,
    "ms_ssim": True,
    "nrmse": False,
    "pearson": True,
    "resolution_px": False,
}
INPUT = "input"

# Six digits are more than any of these numbers has meaning for, and keep the file small.
Number = Annotated[float, Field(allow_inf_nan=False), AfterValidator(lambda value: float(f"{value:.6g}"))]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Record):
    """How close one image is to its truth; see :mod:`refocus.model.metrics`.

    `ms_ssim` is None for images below 176 px, `resolution_px` below 16 px, and where not even coarse structure
    correlates: worse than any number.
    """

    psnr_db: Number
    ssim: Number
    ms_ssim: Number | None = None
    nrmse: Number
    pearson: Number
    resolution_px: Number | None = None
    signal_ratio: Number


class Measurement(_Record):
    """One method on one image at one depth.

    Parameters
    ----------
    method : str
        ``input`` is the image as it came.
    specimen : str
        What the bootstrap resamples.
    band : str
        Depth as a label that equal tests share: ``"4 um"``, ``"3 planes"``. Reports are compared band by band.
    kind : {'simulated', 'focal_series'}
        Whether the defocus was simulated on a sharp image or measured by moving the focus.
    defocus_um : float or None
        Distance from focus where it is known in micrometres.
    photons : float or None
        At the sharp image's peak; None for measured images.
    coverage : float or None
        Share of pixels whose truth lies inside the interval.
    interval_width : float or None
        Mean width of the interval over the truth's range.
    predicted_blur_px, true_blur_px : float or None
    flagged_share : float or None
        Share of tiles on which the gate abstains.
    residual : float or None
        Of the consistency check, in units of the expected noise: 1 where re-blurred output explains the input.
    """

    method: str
    specimen: str
    modality: str
    band: str
    kind: Literal["simulated", "focal_series"]
    score: Score
    defocus_um: Number | None = None
    photons: Number | None = None
    coverage: Number | None = None
    interval_width: Number | None = None
    predicted_blur_px: Number | None = None
    true_blur_px: Number | None = None
    flagged_share: Number | None = None
    residual: Number | None = None


class Speed(_Record):
    """Time of one method on this machine."""

    ms_per_megapixel: Number
    megapixels: Number
    device: str
    threads: int


class SeamCheck(_Record):
    """Whole image against the same image in tiles, in grey levels of 8 bits over the output's range."""

    largest_grey_levels: Number
    side_px: int
    tile_px: int

    @property
    def invisible(self) -> bool:
        """True below one grey level everywhere."""
        return self.largest_grey_levels < 1.0


class Provenance(_Record):
    """Who made the report, from what, where."""

    created: AwareDatetime
    commit: str
    machine: str
    images: str
    seed: int
    numerical_aperture: float | None = None
    pixel_size_um: float | None = None
    wavelength_um: float | None = None
    notes: tuple[str, ...] = ()


class EvaluationReport(_Record):
    """Everything that was measured about one model.

    Parameters
    ----------
    model : str or None
        The method that is judged, one of those measured; None for a report of baselines alone.
    digest : str or None
        Of the judged package.
    measurements : tuple of Measurement
    settings : mapping of str to str
        What classical methods were set to, by ``"method | modality | band | photons"``.
    speed : mapping of method to Speed
    seam : SeamCheck or None
    provenance : Provenance
    """

    format: Literal[1] = 1
    model: str | None
    digest: str | None = None
    measurements: tuple[Measurement, ...]
    settings: dict[str, str] = {}
    speed: dict[str, Speed] = {}
    seam: SeamCheck | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def _model_was_measured(self) -> Self:
        if not self.measurements:
            raise ValueError("the report holds no measurement; an evaluation needs at least one image.")
        if self.model is not None and self.model not in self.methods:
            raise ValueError(f"model {self.model!r} is not among the methods measured: {', '.join(self.methods)}.")
        return self

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods in the order of their first measurement."""
        return tuple(dict.fromkeys(m.method for m in self.measurements))

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands in the order of their first measurement."""
        return tuple(dict.fromkeys(m.band for m in self.measurements))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities in the order of their first measurement."""
        return tuple(dict.fromkeys(m.modality for m in self.measurements))

    def select(
        self, method: str | None = None, *, band: str | None = None, modality: str | None = None
    ) -> tuple[Measurement, ...]:
        """Return the measurements that fit; the judged model's where no method is given."""
        wanted = self.model if method is None else method
        return tuple(
            m
            for m in self.measurements
            if m.method == wanted and (band is None or m.band == band) and (modality is None or m.modality == modality)
        )

    def by_specimen(
        self, metric: Metric, method: str | None = None, *, band: str | None = None, modality: str | None = None
    ) -> dict[str, float]:
        """Return the mean of `metric` over each specimen's images."""
        return self._by_specimen(lambda m: getattr(m.score, metric), method, band=band, modality=modality)

    def _by_specimen(
        self,
        read: Callable[[Measurement], float | None],
        method: str | None,
        *,
        band: str | None,
        modality: str | None,
    ) -> dict[str, float]:
        values: dict[str, list[float]] = {}
        for m in self.select(method, band=band, modality=modality):
            if (value := read(m)) is not None:
                values.setdefault(m.specimen, []).append(value)
        return {specimen: float(np.mean(v)) for specimen, v in values.items()}

    def without_value(
        self, metric: Metric, method: str | None = None, *, band: str | None = None, modality: str | None = None
    ) -> dict[str, int]:
        """Return how many of each specimen's images have no value of `metric`, for the specimens that have such.

        Of resolution those are the images that resolve nothing. Means leave them out: ask for both.
        """
        counted: dict[str, int] = {}
        for m in self.select(method, band=band, modality=modality):
            if getattr(m.score, metric) is None:
                counted[m.specimen] = counted.get(m.specimen, 0) + 1
        return counted

    def mean(
        self, metric: Metric, method: str | None = None, *, band: str | None = None, modality: str | None = None
    ) -> float | None:
        """Return the mean of `metric` over specimens, None where nothing was measured."""
        return self.mean_of(lambda m: getattr(m.score, metric), method, band=band, modality=modality)

    def mean_of(
        self,
        read: Callable[[Measurement], float | None],
        method: str | None = None,
        *,
        band: str | None = None,
        modality: str | None = None,
    ) -> float | None:
        """Return the mean over specimens of what `read` finds in their measurements, None where it finds nothing."""
        values = self._by_specimen(read, method, band=band, modality=modality)
        return float(np.mean(list(values.values()))) if values else None

    def with_rows_of(self, other: EvaluationReport) -> EvaluationReport:
        """Return this report with the other's methods that it lacks, on the scenes that both measured.

        Raises
        ------
        InputError
            If what both measured of the input differs: then the scenes are others.
        """

        def scene(m: Measurement) -> tuple[str, str, str, str, float | None]:
            return m.kind, m.specimen, m.modality, m.band, m.photons

        here = {scene(m): m.score for m in self.measurements if m.method == INPUT}
        there = {scene(m): m.score for m in other.measurements if m.method == INPUT}
        shared = here.keys() & there.keys()
        if not shared or any(here[s] != there[s] for s in shared):
            raise InputError(
                f"the reports share {len(shared)} scenes, and what they measured of the input must agree there; "
                "evaluate both with one seed, on the same images, at the same depths."
            )
        added = tuple(m for m in other.measurements if m.method not in self.methods and scene(m) in shared)
        return self.model_copy(
            update={"measurements": self.measurements + added, "settings": {**other.settings, **self.settings}}
        )

    def coverage(self, method: str | None = None, *, modality: str | None = None) -> dict[str, float]:
        """Return the share of pixels inside the interval by band, for the bands that have one."""
        found = {b: self.mean_of(lambda m: m.coverage, method, band=b, modality=modality) for b in self.bands}
        return {band: value for band, value in found.items() if value is not None}

    @property
    def ms_per_megapixel(self) -> float | None:
        """Time of the judged model, None where it was not measured."""
        speed = self.speed.get(self.model) if self.model is not None else None
        return None if speed is None else speed.ms_per_megapixel


class Difference(_Record):
    """A paired difference with its bootstrap interval."""

    mean: float
    low: float
    high: float
    specimens: int


def paired_difference(
    candidate: Mapping[str, float],
    reference: Mapping[str, float],
    *,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Difference:
    """Mean of ``candidate - reference`` over the specimens that both have, with a bootstrap interval.

    Specimens are drawn with replacement (percentile bootstrap, Efron and Tibshirani 1993, ch. 13): images of one
    specimen are not independent, specimens are.

    Raises
    ------
    InputError
        If no specimen is shared: the two reports then say nothing about each other.
    """
    shared = sorted(candidate.keys() & reference.keys())
    if not shared:
        raise InputError(
            f"the reports share no specimen ({len(candidate)} against {len(reference)}); "
            "evaluate both on the same dataset version and split."
        )
    differences = np.array([candidate[s] - reference[s] for s in shared])
    drawn = np.random.default_rng(seed).integers(0, len(shared), (resamples, len(shared)))
    means = differences[drawn].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Difference(mean=float(differences.mean()), low=float(low), high=float(high), specimens=len(shared))
