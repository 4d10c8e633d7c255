"""``refocus restore``: what files and callers say of the optics reaches the model; one bad file stops no folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from rich.console import Console

from refocus.errors import (
    ConfigurationError,
    InputError,
    MetadataMissing,
    ModelUnfit,
    RefocusError,
    RequestRefused,
    ServiceFailed,
    UnsupportedImage,
)
from refocus.io.writers import write_ome_tiff
from refocus.model.checkpoint import ModelPackage
from refocus.model.restore import restore
from refocus.optics.settings import OpticalSystem
from refocus.optics.simulate import simulate_focal_series
from refocus.serving.restorer import Restorer
from refocus.wire.files import write_whole
from refocus.workflows import restore as workflow
from refocus.workflows.restore import Options, Restored, restore_files
from refocus.zstack import Acquisition
from samples import sharp_image

SYSTEM = OpticalSystem(numerical_aperture=0.95, wavelength_um=0.525, pixel_size_um=0.25)


@pytest.fixture(scope="module")
def blurred() -> np.ndarray:
    stack, _ = simulate_focal_series(
        "nuclei", planes=2, z_step_um=3.0, focus_plane=1.0, system=SYSTEM, size_px=(192, 192), seed=3
    )
    return stack.pixels[0]


@pytest.mark.parametrize("said_by", ["file", "caller", "nobody", "file to deaf ears"])
def test_optics_are_told_by_the_file_or_by_the_caller(blurred: np.ndarray, said_by: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.ome.tif", tmp_path / "out.tif"
    said = Acquisition(pixel_size_um=0.25, numerical_aperture=0.95, wavelength_um=0.525, modality="fluorescence")
    write_ome_tiff(source, blurred, "YX", said if said_by.startswith("file") else Acquisition(pixel_size_um=0.25))
    options = {"caller": {"na": 0.95, "wavelength_um": 0.525}, "file to deaf ears": {"blind": True}}
    restore_files(source, target, Options(model="fluorescence", **options.get(said_by, {})), Console(quiet=True))
    package = ModelPackage.bundled("fluorescence")
    blind = restore(blurred, package).pixels
    told = said_by in ("file", "caller")
    expected = restore(blurred, package, optics=SYSTEM).pixels if told else blind
    np.testing.assert_array_equal(tifffile.imread(target), expected)
    assert (blind != expected).any() == told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (source / name).write_bytes(name.encode())
    return source


def refuses_b(error: RefocusError) -> workflow.RestoreFile:
    def restore_file(before: Path, after: Path) -> Restored:
        if before.name == "b.png":
            raise error
        write_whole(after, before.read_bytes())
        return Restored("digest of a model")

    return restore_file


@pytest.mark.parametrize(
    "error", [InputError("no image"), RequestRefused("too large", status=413), ModelUnfit("5 channels")]
)
def test_a_file_that_is_refused_does_not_stop_the_rest(
    folder: Path, error: RefocusError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "_by_server", lambda _: refuses_b(error))
    target = folder.parent / "out"
    with pytest.raises(InputError, match="1 of 3 files"):
        restore_files(folder, target, Options(url="http://service"), Console(quiet=True))
    assert {path.name for path in target.iterdir()} == {"a.png", "c.png"}


def test_a_service_that_does_not_answer_stops_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "_by_server", lambda _: refuses_b(ServiceFailed("no answer")))
    with pytest.raises(ServiceFailed):
        restore_files(folder, folder.parent / "out", Options(url="http://service"), Console(quiet=True))


def test_images_that_would_overwrite_one_another_are_refused_before_anything_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "_by_server", lambda _: refuses_b(InputError("never asked")))
    for name in ("a.jpg", "a.jpeg"):
        (folder / name).write_bytes(b"")
    target = folder.parent / "out"
    with pytest.raises(ConfigurationError, match=r"a\.png: .*a\.jpeg, .*a\.jpg, .*a\.png"):
        restore_files(folder, target, Options(url="http://service", overwrite=True), Console(quiet=True))


def test_an_aperture_without_a_pixel_size_is_refused_with_what_is_missing(blurred: np.ndarray, tmp_path: Path) -> None:
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    tifffile.imwrite(source, blurred)
    with pytest.raises(MetadataMissing, match=r"in\.tif: na=0\.45 was given.* says pixel_size_um"):
        restore_files(source, target, Options(model="fluorescence", na=0.45), Console(quiet=True))
    assert not target.exists()


def test_planes_that_a_png_cannot_hold_are_refused_before_the_work(
    blurred: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "in.tif", blurred)
    monkeypatch.setattr(Restorer, "restore", None)
    with pytest.raises(UnsupportedImage, match=r"the result has 2 of uint16\. Name a \.tif"):
        restore_files(tmp_path / "in.tif", tmp_path / "out.png", Options(uncertainty=True), Console(quiet=True))


def told(source: Path, target: Path | str, **options: Any) -> str:
    said = io.StringIO()
    restore_files(source, target, Options(**options), Console(file=said, width=300))
    return said.getvalue()


def test_the_model_that_was_chosen_is_named_and_for_colour_how_to_choose_another(tmp_path: Path) -> None:
    source = tmp_path / "[red]section.tif"
    tifffile.imwrite(source, np.stack([255 - (sharp_image(n, 72) >> 8) for n in range(3)], -1).astype(np.uint8))
    digest = ModelPackage.bundled("brightfield").digest[:12]
    said = told(source, tmp_path / "[bold]out.tif")
    written = f"{tmp_path}/[bold]out.tif written (model brightfield {digest}; --modality fluorescence to change"
    assert said.startswith(written)
    assert "--modality" not in told(source, tmp_path / "other.tif", modality="brightfield")


def test_a_result_says_how_much_of_it_is_out_of_range() -> None:
    assert str(Restored("0123456789abcdef", "fluorescence")) == "model fluorescence 0123456789ab"
    assert str(Restored("0123456789abcdef")) == "model 0123456789ab"
    left = Restored("0123456789abcdef", blanks="level 0, 12 hot or dead pixels")
    assert str(left).endswith("; left as it was, as no specimen: level 0, 12 hot or dead pixels")
    assert "; 12.5% of it out of range" in str(Restored("0123456789abcdef", "fluorescence", 0.125))
    assert "; 0.1% of it out of range" in str(Restored("0123456789abcdef", "fluorescence", 1e-6))


def test_a_file_that_is_left_out_of_a_folder_is_named_once(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "bad.tif").write_text("hello")
    (folder / "notes.txt").write_text("hello")
    said = io.StringIO()
    with pytest.raises(InputError, match="1 of 1 files could not be restored"):
        restore_files(folder, tmp_path / "out", Options(), Console(file=said, width=300))
    first, second = said.getvalue().splitlines()
    assert first == "1 other file left out: 1 .txt."
    assert second.startswith(f"1 of 1: {folder}/bad.tif left out: ")
    assert second.count("bad.tif") == 1
