"""Which images are restored, and where results go: decided, and refused, before any work."""

from __future__ import annotations

import pytest
import tifffile

from refocus.errors import ConfigurationError, UnreadableImage
from refocus.workflows.places import places_of
from samples import sharp_image


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "cells.tif"
    tifffile.imwrite(path, sharp_image(1, 32))
    return path


@pytest.fixture
def folder(tmp_path, image):
    root = tmp_path / "in"
    for name in ("a.tif", "b.PNG", "deep/c.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image.read_bytes())
    return root


def results(found, folder):
    return [after.relative_to(folder).as_posix() for _, after in found.pairs]


def test_every_image_of_a_folder_has_its_place_in_the_other(folder, tmp_path):
    found = places_of(folder, tmp_path / "out")
    assert results(found, tmp_path / "out") == ["a.tif", "b.PNG", "deep/c.png"]
    assert found.left_out == ()
    assert not (tmp_path / "out").exists()


def test_results_in_the_folder_that_is_read_are_not_read_again(folder):
    for name in ("out/a.tif", "out/deep/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = places_of(folder, folder / "out", overwrite=True)
    assert results(found, folder / "out") == ["a.tif", "b.PNG", "deep/c.png"]
    assert found.left_out == (f"2 files under {folder / 'out'} left out: results go there.",)


def test_files_of_other_kinds_are_counted_and_what_systems_leave_is_not(folder, tmp_path):
    for name in ("x.czi", "y.czi", "notes.txt", "README", "._a.tif", ".DS_Store", ".thumbs/t.tif"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "folder.tif").mkdir()
    found = places_of(folder, tmp_path / "out")
    assert results(found, tmp_path / "out") == ["a.tif", "b.PNG", "deep/c.png"]
    assert found.left_out == ("4 other files left out: 2 .czi, 1 no suffix, 1 .txt.",)


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "x.czi").touch()
    with pytest.raises(ConfigurationError, match=r"holds no image; expected \.tif.*1 other file left out: 1 \.czi"):
        places_of(tmp_path / "scans", tmp_path / "out")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"missing\.tif does not exist; expected an image"):
        places_of(tmp_path / "missing.tif", tmp_path / "out.tif")


def test_an_interrupted_folder_goes_on_where_it_stopped(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.tif").touch()
    with pytest.raises(ConfigurationError, match=r"1 of 3 results exist, such as .*a\.tif; .*--skip-existing"):
        places_of(folder, out)
    found = places_of(folder, out, skip_existing=True)
    assert results(found, out) == ["b.PNG", "deep/c.png"]
    assert found.left_out == ("1 image left out: the results are there.",)
    assert len(places_of(folder, out, overwrite=True).pairs) == 3
    with pytest.raises(ConfigurationError, match="both given"):
        places_of(folder, out, overwrite=True, skip_existing=True)


def test_a_folder_is_not_restored_over_itself(folder):
    with pytest.raises(ConfigurationError, match=r"a\.tif is the input itself"):
        places_of(folder, folder, overwrite=True)


def test_a_file_goes_into_a_folder_that_is_there_or_ends_in_a_slash(image, tmp_path):
    (tmp_path / "there").mkdir()
    for target in (tmp_path / "there", f"{tmp_path}/new/"):
        ((_, after),) = places_of(image, target).pairs
        assert after.name == "cells.tif"
        assert after.parent.name in ("there", "new")
    with pytest.raises(ConfigurationError, match=r"or a folder: one that is there, or .*new/\."):
        places_of(image, tmp_path / "new")


def test_a_file_without_a_suffix_is_named_by_what_it_holds(image, tmp_path):
    bare = image.rename(tmp_path / "scan 7")
    ((_, after),) = places_of(bare, f"{tmp_path}/new/").pairs
    assert after.name == "scan 7.tif"
    text = tmp_path / "notes"
    text.write_text("hello")
    with pytest.raises(UnreadableImage, match=r"notes: .*expected TIFF"):
        places_of(text, f"{tmp_path}/new/")


@pytest.mark.parametrize(("target", "said"), [
    ("cells.tif", "is the input itself"),
    ("out.jpg", "would lose as JPEG"),
    ("out.bmp", r"expected \.png or|expected \.tif"),
    ("other.tif", "other.tif exists; choose another place"),
])  # fmt: skip
def test_a_place_that_cannot_be_meant_is_refused(image, tmp_path, target, said):
    (tmp_path / "other.tif").touch()
    with pytest.raises(ConfigurationError, match=said):
        places_of(image, tmp_path / target)
    if target == "cells.tif":
        with pytest.raises(ConfigurationError, match=said):
            places_of(image, image, overwrite=True)
