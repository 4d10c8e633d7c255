from __future__ import annotations

import re

import pytest

from refocus.errors import ConfigurationError
from refocus.registry.gates import GatePolicy, decide

from .conftest import report

POLICY = GatePolicy(slowest_ms_per_megapixel=200.0)


def judged(candidate, champion=None, policy=POLICY, golden=0.0):
    return decide(candidate, champion, policy, golden_difference=golden, golden_tolerance=0.03)


def failed(decision) -> list[str]:
    return [failure.condition for failure in decision.failures]


def test_a_better_candidate_passes_every_condition():
    decision = judged(report(3.0), report(2.0))
    assert decision.passed
    assert any("better by 1" in said for said in decision.observations)


def test_the_first_champion_must_beat_the_images_as_they_came():
    assert judged(report(1.0)).passed
    refused = judged(report(-0.5))
    assert not refused.passed
    assert refused.against == "the input"


def test_an_equal_candidate_is_not_better():
    decision = judged(report(2.0), report(2.0))
    assert failed(decision) == ["better overall"]
    assert "interval 0 to 0" in decision.failures[0].detail


def test_gain_within_the_bootstrap_interval_is_not_enough():
    # Two specimens gain 2 dB, two lose 1 dB: +0.5 dB on average, and a resample of four may well be negative.
    candidate = report(2.0, specimens=2)
    loser = report(-1.0, specimens=2, first_specimen=2)
    mixed = candidate.model_copy(update={"measurements": candidate.measurements + loser.measurements})
    assert "better overall" in failed(judged(mixed, report(0.0, specimens=4)))


def test_worse_in_one_band_is_named_with_both_numbers():
    decision = judged(report(5.0, band_gain_db={"4 um": 1.0}), report(2.0))
    assert failed(decision) == ["no worse at 4 um (fluorescence)", "no worse at 4 um (fluorescence)"]
    assert re.search(r"psnr_db 25\.0\d against 26\.0\d of champion", decision.failures[0].detail)


def test_a_little_worse_in_one_band_is_within_tolerance():
    assert judged(report(5.0, band_gain_db={"4 um": 1.95}), report(2.0)).passed


def test_a_band_that_only_the_champion_was_measured_in_is_a_failure():
    decision = judged(report(5.0, bands=("2 um",)), report(2.0))
    assert "psnr_db at 4 um" in failed(decision)


RESOLUTION = GatePolicy(metric="resolution_px", band_tolerance={"resolution_px": 0.1})


def test_images_that_nothing_is_resolved_of_do_not_pass_for_better():
    # Leaving out its two worst, the candidate's mean is 4 px, and better than the champion's 8.
    blind = report(2.0, resolution_px=dict.fromkeys(("s2", "s3", "s4", "s5"), 4.0) | {"s0": None, "s1": None})
    champion = report(2.0)
    assert blind.mean("resolution_px") < champion.mean("resolution_px")
    decision = judged(blind, champion, RESOLUTION)
    assert failed(decision) == ["resolution_px at 2 um", "resolution_px at 4 um"]
    assert "images of 2 specimens of fluorescence (s0, s1); champion" in decision.failures[0].detail


def test_what_the_champion_does_not_resolve_either_is_no_loss():
    sharper = dict.fromkeys(("s1", "s2", "s3", "s4", "s5"), 4.0) | {"s0": None}
    assert judged(report(2.0, resolution_px=sharper), report(2.0, resolution_px={"s0": None}), RESOLUTION).passed


def test_a_candidate_that_resolves_nothing_is_no_better_than_the_input():
    nothing = report(2.0, resolution_px=dict.fromkeys(("s0", "s1", "s2", "s3", "s4", "s5")))
    assert {"same images", "resolution_px at 4 um"} <= set(failed(judged(nothing, policy=RESOLUTION)))


@pytest.mark.parametrize(
    ("coverage", "passes"), [(0.87, False), (0.88, True), (0.92, True), (0.93, False), (None, False)]
)
def test_coverage_must_lie_inside_the_stated_bounds(coverage, passes):
    decision = judged(report(3.0, coverage=coverage), report(2.0))
    assert decision.passed is passes
    assert failed(decision) == ([] if passes else ["coverage"])


def test_a_depth_that_is_covered_badly_is_not_made_up_for_by_others():
    bands = {"bands": ("2 um", "4 um", "8 um")}
    uneven = report(3.0, **bands, band_coverage={"2 um": 1.0, "4 um": 1.0, "8 um": 0.7})
    decision = judged(uneven, report(2.0, **bands))
    assert failed(decision) == [f"coverage at {band} (fluorescence)" for band in ("2 um", "4 um", "8 um")]
    assert "0.700; 0.8 to 0.98 is expected" in decision.failures[-1].detail
    within = report(3.0, **bands, band_coverage={"2 um": 0.97, "4 um": 0.9, "8 um": 0.81})
    assert judged(within, report(2.0, **bands)).passed
    assert judged(uneven, report(2.0, **bands), GatePolicy(band_coverage=None)).passed


def test_measured_series_are_not_judged_depth_by_depth():
    # The in-focus plane that they are compared with has noise of its own.
    candidate = report(3.0, bands=("2 um", "3 planes"), band_coverage={"2 um": 0.99, "3 planes": 0.79})
    measured = tuple(
        m.model_copy(update={"kind": "focal_series"}) if m.band == "3 planes" else m for m in candidate.measurements
    )
    candidate = candidate.model_copy(update={"measurements": measured})
    assert failed(judged(candidate, report(2.0, bands=("2 um", "3 planes")))) == ["coverage at 2 um (fluorescence)"]


def test_speed_beyond_the_budget_is_refused_with_both_numbers():
    decision = judged(report(3.0, ms_per_megapixel=201.0), report(2.0))
    assert str(decision.failures[0]) == "speed: 201 ms per megapixel; the budget is 200."


@pytest.mark.parametrize("golden", [0.031, float("inf"), None])
def test_a_golden_image_that_does_not_come_out_is_refused(golden):
    assert failed(judged(report(3.0), golden=golden)) == ["golden image"]


def test_reports_of_different_images_do_not_compare():
    decision = judged(report(9.0, first_specimen=50), report(2.0))
    assert "same images" in failed(decision)


def test_too_few_specimens_say_nothing():
    assert "specimens" in failed(judged(report(3.0, specimens=2), report(2.0, specimens=2)))


def test_all_failures_are_named_not_only_the_first():
    decision = judged(report(-1.0, coverage=0.5, ms_per_megapixel=999.0), report(2.0), golden=1.0)
    assert {"better overall", "coverage", "speed", "golden image"} <= set(failed(decision))


def test_shipped_policies_load_and_misspelt_ones_do_not(tmp_path):
    assert GatePolicy.load("default") == GatePolicy()
    assert GatePolicy.load("quickstart").coverage is None
    assert GatePolicy.load("quickstart").band_coverage is None
    (tmp_path / "policy.yaml").write_text("metrik: psnr_db\n")
    with pytest.raises(ConfigurationError, match="metrik"):
        GatePolicy.load(tmp_path / "policy.yaml")
    for missing in ("nowhere", tmp_path / "nowhere.yaml"):
        with pytest.raises(ConfigurationError, match="default, quickstart"):
            GatePolicy.load(missing)
