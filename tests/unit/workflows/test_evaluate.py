"""Packages on small data, from files to the report: the workflow, the command and the job."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
import zarr
from rich.console import Console
from scipy import ndimage
from skimage import data
from typer.testing import CliRunner

from refocus.cli.main import app
from refocus.data.dataset import DatasetVersion
from refocus.data.splits import split_of
from refocus.errors import ConfigurationError, InputError, ModelMissing
from refocus.model.abstain import RangeGate
from refocus.model.checkpoint import ModelPackage, PackageConfig
from refocus.model.evaluation import EvaluationReport
from refocus.model.networks import NetworkConfig, build_network
from refocus.workflows import evaluate as evaluation
from refocus.workflows.evaluate import EvaluationOptions, _trusted, evaluate_and_write
from samples import put_sharp_images

JOB = Path(__file__).parents[3] / "jobs" / "evaluate.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sharp images of the validation and calibration splits."""
    root = tmp_path_factory.mktemp("images")
    picture = data.camera()[:200, 100:300]
    for number in range(60):
        name = f"cell{number}"
        if split_of(name) != "train":
            (root / f"{name}.png").write_bytes(imagecodecs.png_encode(np.roll(picture, 9 * number, 0)))
    return root


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """Five planes of one field, sharpest in the middle."""
    path = tmp_path_factory.mktemp("stacks") / "slide.tif"
    picture = data.camera()[100:300, 100:300].astype(np.float32)
    planes = [ndimage.gaussian_filter(picture, abs(z)) for z in (-4, -2, 0, 2, 4)]
    tifffile.imwrite(path, np.stack(planes).astype(np.uint8), metadata={"axes": "ZYX"})
    return path


def saved(folder, name="untrained", **card):
    torch.manual_seed(len(name))
    shape = NetworkConfig(widths=(8, 16), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1)
    config = PackageConfig(name=name, modality="fluorescence", network=shape, largest_blur_px=35)
    package = ModelPackage.of(build_network(shape), config)
    return str(ModelPackage(config, package.weights, card).save(folder))


def read(folder):
    return EvaluationReport.model_validate_json((folder / "evaluation.json").read_bytes())


def test_a_package_is_measured_and_the_report_is_written(folder, tmp_path):
    options = EvaluationOptions((saved(tmp_path / "p"),), tmp_path / "out", images=folder, scope="quick", most=2)
    report = evaluate_and_write(options, Console(quiet=True))
    assert report.methods == ("input", "untrained")
    assert report.bands == ("0 um", "2 um", "4 um", "8 um")
    assert len(report.select()) == 2 * 4
    assert read(tmp_path / "out") == report
    assert (tmp_path / "out" / "evaluation.html").stat().st_size > 10_000


def test_images_are_seen_through_the_objective_that_is_asked_for(folder, tmp_path):
    model = saved(tmp_path / "p")
    arguments = ["evaluate", model, str(folder), "--scope", "quick", "--most", "1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--objective", "0.45,0.5", "--tell-optics"])
    assert done.exit_code == 0, done.output
    report = read(tmp_path / "out")
    assert report.provenance.numerical_aperture == 0.45
    assert report.provenance.notes == ("models were told the optics",)
    # As much blur in pixels as 2, 4 and 8 um give through NA 0.75, at the distances that it takes here.
    radii = sorted({round(m.true_blur_px, 1) for m in report.measurements})
    assert radii == pytest.approx([0.0, 7.0, 14.0, 27.9], abs=0.1)
    assert "6.92 um" in report.bands
    for wrong, said in (
        ("0.45", "expected its aperture"),
        ("0.45,x", "expected numbers"),
        ("1.2,-1", "greater than 0"),
        ("3,4", "at most 1.7"),
        ("0.75,40", "that it samples"),
    ):
        refused = CliRunner().invoke(app, [*arguments, "--objective", wrong])
        assert isinstance(refused.exception, ConfigurationError)
        assert said in str(refused.exception)


def test_examples_are_made_with_the_optics_that_the_report_says_were_told(folder, tmp_path, monkeypatch):
    told = []
    made = evaluation.network_method

    def listening(package, **how):
        told.append(how.get("optics"))
        return made(package, **how)

    monkeypatch.setattr(evaluation, "network_method", listening)
    model = saved(tmp_path / "p")
    options = EvaluationOptions((model,), tmp_path, images=folder, scope="quick", most=1, tell_optics=True)
    report = evaluate_and_write(options, Console(quiet=True))
    assert report.provenance.notes == ("models were told the optics",)
    # For the measurements, with checks and timed without, and for the examples.
    assert told == [options.scenes.system] * 3


def test_models_of_one_name_keep_rows_of_their_own(folder, tmp_path):
    models = (saved(tmp_path / "a"), saved(tmp_path / "b", recipe="deep_r"))
    options = EvaluationOptions(models, tmp_path / "out", images=folder, scope="quick", most=1)
    report = evaluate_and_write(options, Console(quiet=True))
    assert report.methods == ("input", "untrained", "deep_r")
    assert report.model == "untrained"


def test_the_command_reports_on_a_folder_and_on_a_focal_series(folder, series, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = saved(tmp_path / "p")
    said = CliRunner().invoke(app, ["evaluate", package, str(folder), "--scope", "quick", "--most", "1"])
    assert said.exit_code == 0, said.output
    assert "| gain in PSNR (dB) |" in said.output
    assert len(read(tmp_path / "evaluation").select()) == 4
    said = CliRunner().invoke(app, ["evaluate", package, str(series), "--out", "measured"])
    assert said.exit_code == 0, said.output
    report = read(tmp_path / "measured")
    # The sharpest plane is the truth of the four others.
    assert [m.band for m in report.select()] == ["2 planes", "1 planes", "1 planes", "2 planes"]
    assert "Measured focal series" in (tmp_path / "measured" / "evaluation.html").read_text()


def test_what_cannot_be_meant_is_refused_with_what_was_expected(folder, series, tmp_path):
    package = saved(tmp_path / "p")
    for words, said in (
        (["--split", "test"], "expected one of all, train"),
        (["--scope", "huge"], "standard, quick, wide"),
        (["--stacks", str(series)], "already"),
    ):
        found = CliRunner().invoke(app, ["evaluate", package, str(series), *words])
        assert isinstance(found.exception, ConfigurationError)
        assert said in str(found.exception)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no image to evaluate on"):
        evaluate_and_write(EvaluationOptions((package,), tmp_path, images=empty), Console(quiet=True))
    with pytest.raises(InputError, match=r"slide\.tif is no folder"):
        evaluate_and_write(EvaluationOptions((package,), tmp_path, images=series), Console(quiet=True))


def test_a_focal_series_may_be_ome_zarr(series, tmp_path):
    planes = tifffile.imread(series)
    group = zarr.open_group(tmp_path / "slide.ome.zarr", mode="w", zarr_format=3)
    group.create_array("0", data=planes, chunks=(1, 64, 64))
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    whole = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": whole}]}
    words = ["evaluate", saved(tmp_path / "p"), str(tmp_path / "slide.ome.zarr"), "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    assert len(read(tmp_path / "out").select()) == len(planes) - 1


def test_images_of_another_kind_and_small_ones_are_left_out_and_counted(tmp_path):
    package, images, said = saved(tmp_path / "p"), tmp_path / "images", io.StringIO()
    images.mkdir()
    tifffile.imwrite(images / "sound.tif", data.camera()[100:300, 100:300])
    tifffile.imwrite(images / "small.tif", data.camera()[100:180, 100:180])
    tifffile.imwrite(images / "colour.tif", data.astronaut()[100:300, 100:300], photometric="rgb")
    options = EvaluationOptions((package,), tmp_path / "out", images=images, split=None, scope="quick")
    report = evaluate_and_write(options, Console(file=said, width=300))
    assert {m.specimen for m in report.select()} == {"sound"}
    left_out = [line for line in said.getvalue().splitlines() if line.startswith("  left out: ")]
    assert left_out == [
        "  left out: 1 image: not fluorescence, which is what the models are for",
        "  left out: 1 image: smaller than 96 px",
    ]


def test_a_series_that_is_none_is_left_out_of_a_folder_and_refused_alone(series, tmp_path):
    package, folder, said = saved(tmp_path / "p"), tmp_path / "stacks", io.StringIO()
    folder.mkdir()
    (folder / "sound.tif").write_bytes(series.read_bytes())
    (folder / "[text].tif").write_text("hello")
    one = folder / "single.tif"
    tifffile.imwrite(one, data.camera()[100:300, 100:300], metadata={"axes": "YX"})
    options = EvaluationOptions((package,), tmp_path / "out", stacks=folder)
    report = evaluate_and_write(options, Console(file=said, width=300))
    assert {m.specimen for m in report.select()} == {"sound.tif"}
    left_out = [line for line in said.getvalue().splitlines() if line.startswith("  left out: ")]
    assert [name in line for name, line in zip(("[text].tif: ", "single.tif is no"), left_out, strict=True)] == [
        True
    ] * 2
    with pytest.raises(InputError, match=r"single\.tif is no focal series .*three planes"):
        evaluate_and_write(replace(options, stacks=one), Console(quiet=True))


def test_what_is_no_model_and_no_place_for_a_report_is_refused_before_the_work(series, tmp_path):
    with pytest.raises(ModelMissing, match=r"'nope' is neither .* brightfield, fluorescence"):
        evaluate_and_write(EvaluationOptions(("nope",), tmp_path / "out", stacks=series), Console(quiet=True))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="file is a file; expected a folder"):
        evaluate_and_write(EvaluationOptions((), tmp_path / "file", stacks=series), Console(quiet=True))


def test_a_package_is_calibrated_on_a_dataset_as_on_a_folder(store, tmp_path):
    version = DatasetVersion.open(store, put_sharp_images(store, name="images", each=5, side=192))
    found = _trusted(ModelPackage.load(saved(tmp_path / "p")), version, None, Console(quiet=True))
    assert found.config.calibration.specimens == 5
    assert found.config.gate == RangeGate.shipped()


def test_the_job_calibrates_and_saves_a_package_with_its_evaluation(folder, tmp_path):
    package = saved(tmp_path / "p")
    words = ["--model", package, "--images", folder, "--scope", "quick", "--most", "1", "--calibrate", tmp_path / "c"]
    done = subprocess.run(
        [sys.executable, JOB, *words, "--out", tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    calibrated = ModelPackage.load(tmp_path / "c")
    assert calibrated.config.calibration.specimens >= 5
    assert calibrated.config.gate == RangeGate.shipped()
    assert calibrated.digest != ModelPackage.load(package).digest
    assert read(tmp_path / "out").digest == calibrated.digest
    said = " ".join(done.stdout.split())
    for split in ("calibration", "validation"):
        assert f"are in the {split} split, by their specimens: as acquisition.yaml there says" in said
    assert re.search(r"coverage of the 90% interval \(%\) \| \d", done.stdout)
