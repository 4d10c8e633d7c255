"""Evaluate restoring methods on scenes with known truth and on measured focal series.

Everything is compared in the input's own intensity units, without any fit. What was simulated is said to be.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from refocus.errors import InputError
from refocus.model import metrics
from refocus.model.evaluation import INPUT, EvaluationReport, Measurement, Provenance, Score, SeamCheck, Speed
from refocus.training.baselines import BASELINES, Baseline, best_settings
from refocus.training.scenes import Scene, SceneSettings, SharpImage, scenes_of
from refocus.training.series import MeasuredPlane

Image = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Restored:
    """What a method says about one image.

    Attributes
    ----------
    pixels : ndarray, shape [C, Y, X]
        In the input's units.
    half_width : ndarray, shape [C, Y, X], or None
        Half of the 90% interval at each pixel.
    blur_radius_px : float or None
        Median over the image.
    flagged_share : float or None
        Share of the image on which the method abstains.
    residual : float or None
        Of the consistency check.
    """

    pixels: Image
    half_width: Image | None = None
    blur_radius_px: float | None = None
    flagged_share: float | None = None
    residual: float | None = None


_TIMED_BLUR_PX = 14.0

#: ``method(image [C, Y, X] float32) -> Restored``, or the pixels alone.
Method = Callable[[Image], Restored | Image]


def evaluate(
    methods: Mapping[str, Method],
    images: Sequence[SharpImage],
    settings: SceneSettings | None = None,
    *,
    planes: Sequence[MeasuredPlane] = (),
    model: str | None = None,
    digest: str | None = None,
    baselines: Sequence[Baseline] = BASELINES,
    source: str = "",
    notes: Sequence[str] = (),
    seam: SeamCheck | None = None,
    timed: Mapping[str, Method] | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Measure methods and baselines on simulated scenes of sharp images, and methods on measured planes.

    Parameters
    ----------
    methods : mapping of str to callable
        Networks by name; see `Method`. None of them sees the PSF, the depth or the truth.
    images : sequence of SharpImage
        From specimens that no training has seen.
    settings : SceneSettings, optional
        Optics, depths, exposures and seed.
    planes : sequence of MeasuredPlane
        Of focal series. Their PSF is not known, so the baselines leave them out.
    model : str, optional
        The method that is judged; the first one where not given.
    digest : str, optional
        Of the judged package.
    baselines : sequence of Baseline
        Given the true PSF, each at its best setting per depth.
    source : str
        Where the images came from, for the record.
    notes : sequence of str
    seam : SeamCheck, optional
    timed : mapping of str to callable, optional
        What is timed under each name: all rows alike, without checks that only the judged one is asked for. `methods`
        where not given; none where empty.
    progress : callable, optional
        Told ``(what, done, total)``.

    Returns
    -------
    EvaluationReport

    Raises
    ------
    InputError
        If there is neither image nor plane.
    """
    settings = settings or SceneSettings()
    if not images and not planes:
        raise InputError("no image to evaluate on; is the split empty, or the modality another one?")
    total = len(images) * len(settings.defocus_um) * len(settings.photons)
    tell = progress or (lambda *_: None)

    def scenes(what: str) -> Iterable[Scene]:
        for done, scene in enumerate(scenes_of(images, settings)):
            tell(what, done, total)
            yield scene
        tell(what, total, total)

    best = best_settings(scenes("settings of classical methods"), baselines) if baselines and images else None
    measurements = []
    for scene in scenes("scenes"):
        measurements.append(_measured(INPUT, scene, Restored(scene.image)))
        for baseline in baselines:
            assert best is not None
            measurements += [_measured(name, scene, Restored(out)) for name, out in best.rows(baseline, scene)]
        measurements += [_measured(name, scene, restored_by(method, scene.image)) for name, method in methods.items()]
    for done, plane in enumerate(planes):
        tell("measured planes", done, len(planes))
        measurements.append(_measured_plane(INPUT, plane, Restored(plane.image)))
        for name, method in methods.items():
            measurements.append(_measured_plane(name, plane, restored_by(method, plane.image)))
    channels = len(images[0].pixels) if images else len(planes[0].image)
    speed = {name: speed_of(method, channels) for name, method in (methods if timed is None else timed).items()}
    return EvaluationReport(
        model=model or next(iter(methods), None),
        digest=digest,
        measurements=tuple(measurements),
        settings=best.described() if best is not None else {},
        speed=speed,
        seam=seam,
        provenance=Provenance(
            created=datetime.now(UTC),
            commit=commit(),
            machine=machine(),
            images=source or f"{len(images)} images",
            seed=settings.seed,
            numerical_aperture=settings.system.numerical_aperture,
            pixel_size_um=settings.system.pixel_size_um,
            wavelength_um=settings.system.wavelength_um,
            notes=tuple(notes),
        ),
    )


def score(image: Image, truth: Image) -> Score:
    """Compare [C, Y, X] with the truth by every metric that has room; the range is the truth's."""
    span = metrics.data_range(truth)
    side_px = min(truth.shape[-2:])
    return Score(
        psnr_db=metrics.psnr(image, truth, range_of_data=span),
        ssim=metrics.ssim(image, truth, range_of_data=span),
        ms_ssim=metrics.ms_ssim(image, truth, range_of_data=span) if side_px >= 176 else None,
        nrmse=metrics.nrmse(image, truth, range_of_data=span),
        pearson=metrics.pearson(image, truth),
        resolution_px=metrics.frc_resolution_px(image, truth, second_is_truth=True) if side_px >= 16 else None,
        signal_ratio=metrics.signal_ratio(image, truth),
    )


def restored_by(method: Method, image: Image) -> Restored:
    """Call a method and check what it returns."""
    answer = method(image)
    restored = answer if isinstance(answer, Restored) else Restored(np.asarray(answer))
    if restored.pixels.shape != image.shape:
        raise InputError(f"a method returned shape {restored.pixels.shape} for an image of {image.shape}.")
    return restored


def _measured(name: str, scene: Scene, restored: Restored) -> Measurement:
    return Measurement(
        method=name,
        specimen=scene.specimen,
        modality=scene.modality,
        band=scene.band,
        kind="simulated",
        score=score(restored.pixels, scene.truth),
        defocus_um=scene.defocus_um,
        photons=scene.photons,
        true_blur_px=scene.blur_radius_px,
        **said_about(restored, scene.truth),
    )


def _measured_plane(name: str, plane: MeasuredPlane, restored: Restored) -> Measurement:
    return Measurement(
        method=name,
        specimen=plane.specimen,
        modality=plane.modality,
        band=plane.band,
        kind="focal_series",
        score=score(restored.pixels, plane.truth),
        defocus_um=plane.defocus_um,
        **said_about(restored, plane.truth),
    )


def said_about(restored: Restored, truth: Image) -> dict[str, float | None]:
    """What a method said of itself, checked against the truth: fields of a Measurement."""
    coverage = width = None
    if restored.half_width is not None:
        inside = np.abs(restored.pixels - truth) <= restored.half_width
        coverage = float(inside.mean())
        width = 2.0 * float(restored.half_width.mean()) / metrics.data_range(truth)
    return {
        "coverage": coverage,
        "interval_width": width,
        "predicted_blur_px": restored.blur_radius_px,
        "flagged_share": restored.flagged_share,
        "residual": restored.residual,
    }


def speed_of(method: Method, channels: int = 1, *, side_px: int = 512, repeats: int = 3) -> Speed:
    """Median time of a method on a square image out of focus, after one call that is not counted.

    Spots of all sizes, each spread over a disc: what is in focus costs half, since nothing is deconvolved.
    """
    rng = np.random.default_rng(0)
    y, x = np.fft.fftfreq(side_px)[:, None], np.fft.rfftfreq(side_px)
    texture = np.fft.rfft2(rng.normal(size=(side_px, side_px))) / (np.hypot(y, x) + 1.0 / side_px) ** 1.5
    spots = np.fft.irfft2(texture, s=(side_px, side_px)).clip(min=0.0)
    away = np.fft.fftfreq(side_px, 1.0 / side_px)
    disc = np.hypot(away[:, None], away) <= _TIMED_BLUR_PX
    blurred = np.fft.irfft2(np.fft.rfft2(spots) * np.fft.rfft2(disc), s=spots.shape).clip(min=0.0)
    image = rng.poisson(100.0 + 1000.0 * blurred / blurred.max(), (channels, side_px, side_px)).astype(np.float32)
    method(image)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        method(image)
        times.append(time.perf_counter() - start)
    megapixels = side_px**2 / 1e6
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return Speed(
        ms_per_megapixel=1e3 * statistics.median(times) / megapixels,
        megapixels=megapixels,
        device=device,
        threads=torch.get_num_threads(),
    )


def commit(source: Path = Path(__file__).parents[1]) -> str:
    """Return the source's commit, with a mark where any of its files differ from it; ``unknown`` outside a checkout."""
    try:
        answers = [
            subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, check=True, timeout=10)
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "."])
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answers[0].stdout.strip() + ("+changes" if answers[1].stdout.strip() else "")


def machine() -> str:
    """Return the processor, its cores and, where there is one, the accelerator."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads{accelerator}"
