"""Packages small enough to build in milliseconds, and evaluations of them."""

from __future__ import annotations

from datetime import UTC, datetime

from refocus.model.calibration import Calibration
from refocus.model.checkpoint import ModelPackage
from refocus.model.evaluation import EvaluationReport, Measurement, Provenance, Score, Speed
from refocus.testing.service import tiny_package


def package(seed: int = 0, report: EvaluationReport | None = None, *, calibrated: bool = True) -> ModelPackage:
    made = tiny_package(seed, name="tiny")
    config = made.config.model_copy(update={"calibration": Calibration(specimens=12 if calibrated else 0)})
    evaluation = {} if report is None else report.model_dump(mode="json")
    return ModelPackage(config, made.weights, {"run": "run-1", "dataset": "plates/v1"}, evaluation)


def report(
    gain_db: float,
    *,
    bands: tuple[str, ...] = ("2 um", "4 um"),
    band_gain_db: dict[str, float] | None = None,
    specimens: int = 6,
    coverage: float | None = 0.9,
    band_coverage: dict[str, float] | None = None,
    ms_per_megapixel: float = 100.0,
    first_specimen: int = 0,
    resolution_px: dict[str, float | None] | None = None,
) -> EvaluationReport:
    """A model that is `gain_db` better than the input, a little more on some specimens than on others."""
    measurements = []
    for band in bands:
        gain = (band_gain_db or {}).get(band, gain_db)
        for specimen in range(first_specimen, first_specimen + specimens):
            for method, psnr in (("input", 24.0), ("net", 24.0 + gain + 0.01 * specimen)):
                resolved_px = (resolution_px or {}).get(f"s{specimen}", 8.0) if method == "net" else 12.0
                score = Score(
                    psnr_db=psnr, ssim=psnr / 40, nrmse=0.1, pearson=0.9, signal_ratio=1.0, resolution_px=resolved_px
                )
                measurements.append(
                    Measurement(
                        method=method,
                        specimen=f"s{specimen}",
                        modality="fluorescence",
                        band=band,
                        kind="simulated",
                        score=score,
                        coverage=(band_coverage or {}).get(band, coverage) if method == "net" else None,
                    )
                )
    return EvaluationReport(
        model="net",
        measurements=tuple(measurements),
        speed={"net": Speed(ms_per_megapixel=ms_per_megapixel, megapixels=1, device="cpu", threads=1)},
        provenance=Provenance(
            created=datetime(2026, 1, 1, tzinfo=UTC), commit="0", machine="test", images="plates/v1", seed=0
        ),
    )
