from datetime import UTC, datetime

import numpy as np
import pytest
from pydantic import ValidationError

from refocus.errors import InputError
from refocus.model.evaluation import (
    EvaluationReport,
    Measurement,
    Provenance,
    Score,
    SeamCheck,
    Speed,
    paired_difference,
)


def measured(method, specimen, psnr_db, band="4 um", coverage=None, **more):
    score = Score(psnr_db=psnr_db, ssim=0.8, nrmse=0.05, pearson=0.9, signal_ratio=1.0)
    return Measurement(
        method=method,
        specimen=specimen,
        modality="fluorescence",
        band=band,
        kind="simulated",
        score=score,
        coverage=coverage,
        **more,
    )


def report(*measurements, model="net", **more):
    provenance = Provenance(
        created=datetime(2026, 1, 1, tzinfo=UTC), commit="abc", machine="here", images="two cells", seed=0
    )
    return EvaluationReport(model=model, measurements=measurements, provenance=provenance, **more)


def test_specimens_count_alike_however_many_images_they_have():
    r = report(measured("net", "a", 20), measured("net", "a", 22), measured("net", "b", 31))
    assert r.by_specimen("psnr_db") == {"a": 21, "b": 31}
    assert r.mean("psnr_db") == 26


def test_bands_are_kept_apart():
    r = report(measured("net", "a", 20), measured("net", "a", 30, band="0 um"), measured("input", "a", 10))
    assert r.bands == ("4 um", "0 um")
    assert r.mean("psnr_db", band="0 um") == 30
    assert r.mean("psnr_db", "input", band="4 um") == 10
    assert r.mean("psnr_db", "input", band="0 um") is None


def test_coverage_speaks_only_of_bands_that_have_intervals():
    r = report(measured("net", "a", 20, coverage=0.9), measured("net", "a", 20, band="0 um"))
    assert r.coverage() == {"4 um": 0.9}


def test_coverage_counts_specimens_alike_too():
    many = [measured("net", "a", 20, coverage=0.8) for _ in range(3)]
    r = report(*many, measured("net", "b", 20, coverage=1.0))
    assert r.coverage() == {"4 um": pytest.approx(0.9)}
    assert r.mean_of(lambda m: m.coverage) == pytest.approx(0.9)


def test_report_survives_its_json():
    r = report(
        measured("net", "a", 20.123456789, coverage=0.9),
        speed={"net": Speed(ms_per_megapixel=900, megapixels=0.25, device="cpu", threads=1)},
        seam=SeamCheck(largest_grey_levels=0.2, side_px=512, tile_px=256),
        digest="0123",
    )
    again = EvaluationReport.model_validate_json(r.model_dump_json())
    assert again == r
    assert again.ms_per_megapixel == 900
    assert again.seam is not None
    assert again.seam.invisible


def test_a_report_without_its_model_is_refused():
    with pytest.raises(ValidationError, match="not among the methods"):
        report(measured("input", "a", 20))
    with pytest.raises(ValidationError, match="no measurement"):
        report()
    with pytest.raises(ValidationError):
        measured("net", "a", float("nan"))


def test_bootstrap_interval_agrees_with_the_normal_one():
    rng = np.random.default_rng(0)
    differences = rng.normal(1.0, 0.5, 200)
    candidate = {f"s{i:03}": 20 + d for i, d in enumerate(differences)}
    reference = dict.fromkeys(candidate, 20.0)
    found = paired_difference(candidate, reference)
    half = 1.96 * differences.std() / np.sqrt(200)
    assert found.mean == pytest.approx(differences.mean())
    # 4000 resamples know the 2.5% quantile to about 3% of the half width.
    assert found.low == pytest.approx(differences.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(differences.mean() + half, abs=0.1 * half)


def test_only_shared_specimens_are_compared():
    found = paired_difference({"a": 2.0, "b": 100.0}, {"a": 1.0, "c": 0.0})
    assert (found.mean, found.specimens) == (1.0, 1)
    with pytest.raises(InputError, match="share no specimen"):
        paired_difference({"a": 1.0}, {"b": 1.0})


def test_rows_of_an_earlier_report_are_taken_over_where_the_scenes_agree():
    new = report(measured("input", "a", 10), measured("net", "a", 20))
    old = report(measured("input", "a", 10), measured("rl", "a", 15), measured("rl", "b", 99), model=None)
    both = new.with_rows_of(old)
    assert both.methods == ("input", "net", "rl")
    assert both.mean("psnr_db", "rl") == 15
    with pytest.raises(InputError, match="same images"):
        new.with_rows_of(report(measured("input", "a", 11), measured("rl", "a", 15), model=None))
