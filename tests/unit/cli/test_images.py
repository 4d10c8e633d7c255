"""Commands on image files: what they write, and what they leave alone."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from refocus.cli.main import app
from refocus.errors import ConfigurationError, InputError
from refocus.model.checkpoint import bundled_names
from samples import focal_series, sharp_image


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def series(tmp_path):
    path = tmp_path / "series.tif"
    tifffile.imwrite(path, focal_series(planes=5, best=2, side=64), photometric="minisblack", metadata={"axes": "ZYX"})
    return path


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cells.png"
    path.write_bytes(imagecodecs.png_encode(sharp_image(1, 64)))
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_explaining_leaves_the_image_and_other_pictures_alone(picture, tmp_path):
    (tmp_path / "old.png").write_bytes(b"a figure")
    before = contents(tmp_path)
    for target, words, said in (
        ("cells.png", (), "is the input itself"),
        ("cells.png", ("--overwrite",), "is the input itself"),
        ("old.png", (), "old.png exists"),
    ):
        refused = run("explain", picture, tmp_path / target, *words)
        assert isinstance(refused.exception, ConfigurationError)
        assert said in str(refused.exception)
    assert contents(tmp_path) == before


def test_a_focal_series_is_measured_without_leaving_files(series, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = run("focus", series)
    assert said.exit_code == 0, said.output
    assert "In focus at plane 2" in said.output
    assert list(contents(tmp_path)) == ["series.tif"]


def test_a_focus_curve_is_drawn_as_png_over_nothing_that_is_there(series, tmp_path):
    before = series.read_bytes()
    for target, said in ((series, r"expected .png"), (tmp_path / "curve.xyz", r"expected .png")):
        refused = run("focus", series, "--plot", target)
        assert isinstance(refused.exception, ConfigurationError)
        assert said in str(refused.exception)
    curve = tmp_path / "plots" / "curve.png"
    assert run("focus", series, "--plot", curve).exit_code == 0
    assert imagecodecs.png_decode(curve.read_bytes()).shape[:2] == (480, 840)
    assert "exists" in str(run("focus", series, "--plot", curve).exception)
    assert run("focus", series, "--plot", curve, "--overwrite").exit_code == 0
    assert series.read_bytes() == before


def test_a_focus_curve_never_replaces_a_series_of_whatever_name(series, tmp_path):
    disguised = series.rename(tmp_path / "series.png")
    before = disguised.read_bytes()
    assert "is the input itself" in str(run("focus", disguised, "--plot", disguised, "--overwrite").exception)
    assert disguised.read_bytes() == before


def test_neither_a_series_nor_its_truth_is_simulated_over_a_file(tmp_path):
    for there in ("a.ome.tif", "b.truth.ome.tif"):
        (tmp_path / there).write_bytes(b"measured")
        name = f"{there[0]}.ome.tif"
        small = ("--planes", 2, "--size-px", 32, "--specimen", "puncta")
        refused = run("simulate", tmp_path / name, *small)
        assert isinstance(refused.exception, ConfigurationError)
        assert f"{there} exists" in str(refused.exception)
        assert (tmp_path / there).read_bytes() == b"measured"
        assert run("simulate", tmp_path / name, *small, "--overwrite").exit_code == 0
        assert np.ptp(tifffile.imread(tmp_path / there)) > 0


def test_a_series_that_cannot_be_judged_is_named_with_the_reason(tmp_path):
    one, broken, folder = tmp_path / "one.tif", tmp_path / "broken.tif", tmp_path / "scans"
    tifffile.imwrite(one, sharp_image(1, 64), metadata={"axes": "YX"})
    tifffile.imwrite(
        broken, np.full((3, 64, 64), np.nan, np.float32), photometric="minisblack", metadata={"axes": "ZYX"}
    )
    folder.mkdir()
    for path, said in (
        (one, f"{one}: one plane came; a series through focus is needed"),
        (broken, f"{broken}: a focus measure got NaN"),
        (folder, f"{folder} is a folder and no OME-Zarr"),
    ):
        refused = run("focus", path)
        assert isinstance(refused.exception, InputError)
        assert str(refused.exception).startswith(said)


def test_planes_without_structure_have_no_focus(tmp_path):
    path = tmp_path / "flat.tif"
    tifffile.imwrite(path, np.full((4, 64, 64), 7, np.uint16), photometric="minisblack", metadata={"axes": "ZYX"})
    said = run("focus", path)
    assert said.exit_code == 0, said.output
    assert "no structure to judge focus by" in said.output
    assert "Sharpest at" not in said.output


@pytest.mark.parametrize("words", [("--z-step-um", "nan"), ("--z-step-um", "inf"), ("--tilt-deg", "nan"),
                                   ("--tilt-deg", "90")])  # fmt: skip
def test_what_is_no_length_or_angle_cannot_be_simulated(tmp_path, words):
    refused = run("simulate", tmp_path / "series.ome.tif", *words)
    assert isinstance(refused.exception, ConfigurationError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "said"), [
    (("--na", "nan"), "nan came; expected 0.01 to 1.7"),
    (("--na", "1.9"), "1.9 came; expected 0.01 to 1.7."),
    (("--wavelength-um", "525"), "expected 0.1 to 2 um; 525 nm are 0.525 um"),
    (("--pixel-size-um", "325"), "expected 0.001 to 100 um; 325 nm are 0.325 um"),
    (("--pixel-size-um", "inf"), "expected 0.001 to 100 um."),
])  # fmt: skip
@pytest.mark.parametrize("command", ["restore", "explain"])
def test_optics_that_cannot_be_are_refused_with_their_unit(picture, tmp_path, command, words, said):
    refused = CliRunner(env={"COLUMNS": "300"}).invoke(app, [command, str(picture), str(tmp_path / "out.png"), *words])
    assert refused.exit_code == 2
    assert said in refused.output


@pytest.mark.parametrize("command", ["restore", "explain"])
def test_the_help_names_the_bundled_models(command):
    said = CliRunner(env={"COLUMNS": "300"}).invoke(app, [command, "--help"]).output
    assert all(name in said for name in bundled_names())
