import re
import subprocess

import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from refocus.errors import InputError
from refocus.model.blur_estimate import estimate_blur
from refocus.model.evaluation import EvaluationReport
from refocus.training.baselines import UNSHARP
from refocus.training.evaluate import Restored, commit, evaluate, speed_of
from refocus.training.scenes import SceneSettings, SharpImage
from refocus.training.series import MeasuredPlane

SETTINGS = SceneSettings(defocus_um=(0, 6), photons=(1000, 2000))


def images():
    return [
        SharpImage(data.camera()[:180, 100:280][None], "cameraman", "fluorescence"),
        SharpImage(np.moveaxis(data.astronaut()[:180, 100:280], -1, 0), "astronaut", "brightfield"),
    ]


def smooth(image):
    return ndimage.gaussian_filter(image, (0, 1, 1))


@pytest.fixture(scope="module")
def report():
    return evaluate({"smooth": smooth}, images(), SETTINGS, baselines=[UNSHARP], timed={})


def test_every_method_meets_the_same_scenes(report):
    assert report.methods == ("input", "unsharp", "unsharp_ssim", "smooth")
    assert report.bands == ("0 um", "6 um")
    for method in report.methods:
        assert len(report.select(method)) == 8
    assert report.model == "smooth"


def test_an_identity_scores_as_the_input():
    found = evaluate({"same": lambda image: image}, images(), SETTINGS, baselines=[], timed={})
    for before, after in zip(found.select("input"), found.select("same"), strict=True):
        assert before.score == after.score


def test_the_best_unsharp_mask_is_no_worse_than_smoothing_is_good(report):
    # In focus smoothing removes noise; far out it has nothing to add.
    assert report.mean("psnr_db", "smooth", band="6 um") == pytest.approx(
        report.mean("psnr_db", "input", band="6 um"), abs=0.5
    )
    assert report.mean("psnr_db", "unsharp", band="6 um") > report.mean("psnr_db", "input", band="6 um")


def test_equal_seeds_give_equal_reports(report):
    again = evaluate({"smooth": smooth}, images(), SETTINGS, baselines=[UNSHARP], timed={})
    assert again.measurements == report.measurements
    assert again.settings == report.settings


def test_intervals_are_checked_against_the_truth():
    def wide(image):
        half = np.zeros_like(image)
        half[:, :90] = 1e9
        return Restored(image, half_width=half, blur_radius_px=3.0, flagged_share=0.25)

    found = evaluate({"wide": wide}, images()[:1], SETTINGS, baselines=[], timed={})
    for measurement in found.select("wide"):
        # Half of the 180 rows are always covered; elsewhere only pixels that clip to their truth of zero are.
        assert measurement.coverage == pytest.approx(0.5, abs=0.02)
        assert measurement.predicted_blur_px == 3.0
        assert measurement.flagged_share == 0.25
    assert list(found.coverage()) == ["0 um", "6 um"]


def test_the_report_survives_its_json(report):
    assert EvaluationReport.model_validate_json(report.model_dump_json()) == report
    assert report.provenance.numerical_aperture == 0.75


def test_a_small_measured_tile_is_scored_by_what_has_room():
    rng = np.random.default_rng(0)
    truth = rng.random((1, 12, 40), np.float32)
    plane = MeasuredPlane(truth + 0.1, truth, specimen="a", modality="fluorescence", planes_from_focus=2.0)
    found = evaluate({"same": lambda image: image}, [], planes=[plane], baselines=[], timed={})
    (measurement,) = found.select("same")
    assert measurement.score.psnr_db == pytest.approx(20, abs=0.5)
    assert measurement.score.resolution_px is None
    assert measurement.score.ms_ssim is None


def test_a_method_that_changes_the_shape_is_refused():
    with pytest.raises(InputError, match="returned shape"):
        evaluate({"crop": lambda image: image[:, 1:]}, images(), SETTINGS, baselines=[], timed={})
    with pytest.raises(InputError, match="no image"):
        evaluate({}, [], SETTINGS)


def test_the_commit_is_marked_where_any_file_of_the_source_differs_from_it(tmp_path):
    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    assert commit(tmp_path) == "unknown"
    git("init")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "networks.py").write_text("1")
    git("add", "-A")
    git("commit", "-m", "first")
    clean = commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{12}", clean)
    (tmp_path / "model" / "networks.py").write_text("2")
    assert commit(tmp_path) == f"{clean}+changes"


def test_speed_counts_megapixels():
    speed = speed_of(lambda image: image, side_px=100)
    assert speed.megapixels == 0.01
    assert speed.ms_per_megapixel >= 0


def test_speed_is_that_of_an_image_out_of_focus():
    seen = []

    def method(image):
        seen.append(image)
        return image

    speed_of(method, side_px=256, repeats=1)
    estimate = estimate_blur(seen[0])
    assert np.median(estimate.radius_px) == pytest.approx(14.0, rel=0.2)  # the profile is not told
