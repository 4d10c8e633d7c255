import base64
import re

import imagecodecs
import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from refocus.training.baselines import UNSHARP
from refocus.training.evaluate import Restored, evaluate
from refocus.training.figures import panels, row_of
from refocus.training.report import examples_of, gain_table, html_report, markdown_table, series_table, trust_table
from refocus.training.scenes import SceneSettings, SharpImage
from refocus.training.series import MeasuredPlane

SETTINGS = SceneSettings(defocus_um=(0, 6), photons=(1000,))


def smooth(image):
    return Restored(ndimage.gaussian_filter(image, (0, 1, 1)), half_width=np.full_like(image, 20.0))


@pytest.fixture(scope="module")
def image():
    return SharpImage(data.camera()[:180, 100:280][None], "camera <man>", "fluorescence")


@pytest.fixture(scope="module")
def report(image):
    truth = image.pixels.astype(np.float32)
    plane = MeasuredPlane(ndimage.gaussian_filter(truth, (0, 2, 2)), truth, "slide", "fluorescence", 2.0)
    return evaluate({"smooth": smooth}, [image], SETTINGS, planes=[plane], baselines=[UNSHARP])


def test_the_page_stands_alone(report, image):
    page = html_report(report, examples_of({"smooth": smooth}, [image], SETTINGS, defocus_um=(6,)))
    assert not re.search(r'(src|href)="(?!data:)', page)
    figures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    # Two rows of curves, the interval, two series, one example.
    assert len(figures) == 6
    for figure in figures:
        assert imagecodecs.png_decode(base64.b64decode(figure)).std() > 0
    assert "camera &lt;man&gt;" not in page or "<man>" not in page


def test_tables_hold_the_means(report):
    table = markdown_table(report, "psnr_db", "fluorescence")
    assert "| PSNR (dB) | 0 um | 6 um |" in table
    assert f"{report.mean('psnr_db', 'input', band='6 um'):.2f}" in table
    assert "planes" not in table
    assert "| PSNR (dB) | slide |" in series_table(report, "psnr_db")


def test_tables_say_of_how_many_images_nothing_is_resolved(report):
    blind = report.model_copy(
        update={
            "measurements": tuple(
                m.model_copy(update={"score": m.score.model_copy(update={"resolution_px": None})})
                if m.method == "smooth" and m.band == "6 um"
                else m
                for m in report.measurements
            )
        }
    )
    assert "unresolved" not in markdown_table(report, "resolution_px", "fluorescence")
    row = markdown_table(blind, "resolution_px", "fluorescence").splitlines()[-1]
    assert row.startswith("| smooth |")
    assert row.endswith("| (1 unresolved) |")
    assert "(1 unresolved)</td>" in html_report(blind)


def test_each_curve_shows_a_classical_method_at_the_setting_for_it(report):
    assert row_of(report, "unsharp", "ssim") == "unsharp_ssim"
    assert row_of(report, "unsharp", "psnr_db") == "unsharp"
    assert row_of(report, "smooth", "ssim") == "smooth"


def test_gains_and_trust_are_tables_by_band(report):
    gain, trust = gain_table(report, "fluorescence"), trust_table(report, "fluorescence")
    assert gain.startswith("| | 0 um | 6 um |")
    mean = report.mean("psnr_db", band="6 um") - report.mean("psnr_db", "input", band="6 um")
    # One specimen: its bootstrap knows no other.
    assert f"{mean:+.2f} ({mean:+.2f} to {mean:+.2f})" in gain
    assert "coverage of the 90% interval" in trust


def test_differences_share_one_scale():
    truth = np.zeros((1, 64, 64), np.float32)
    truth[0, 16:48, 16:48] = 100
    half, twice = (panels({"a": truth + d}, truth, title="t") for d in (5.0, 10.0))
    # Twice the difference is drawn in a deeper colour: nothing is stretched to fill the scale.
    saturation = [float(np.ptp(imagecodecs.png_decode(p)[..., :3].astype(int), axis=-1).sum()) for p in (half, twice)]
    assert saturation[1] > saturation[0]
