"""Results on disk: what may be written where, and that it is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from refocus.errors import ConfigurationError, ModelMissing, UnreadableImage, UnsupportedImage
from refocus.wire.files import check_target, naming, whole_file, write_whole


@pytest.fixture
def given(tmp_path):
    path = tmp_path / "in.png"
    path.write_bytes(b"measured")
    return path


def test_an_input_is_never_written_over_by_whatever_name(given, tmp_path):
    (tmp_path / "link.png").symlink_to(given)
    for target in (given, tmp_path / "link.png", tmp_path / "sub" / ".." / "in.png"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        for overwrite in (False, True):
            with pytest.raises(ConfigurationError, match="is the input itself"):
                check_target(target, given, overwrite=overwrite)


def test_another_file_that_is_there_is_replaced_only_where_that_is_asked_for(given, tmp_path):
    (tmp_path / "old.png").touch()
    with pytest.raises(ConfigurationError, match=r"old\.png exists.*--overwrite"):
        check_target(tmp_path / "old.png", given)
    check_target(tmp_path / "old.png", given, overwrite=True)
    check_target(tmp_path / "new.png", given)


def test_places_where_no_file_can_be_are_refused_before_the_work(given, tmp_path):
    with pytest.raises(ConfigurationError, match="is a folder"):
        check_target(tmp_path, given, overwrite=True)
    with pytest.raises(ConfigurationError, match=r"in\.png is a file; expected a folder"):
        check_target(given / "deeper" / "out.png", given)
    with pytest.raises(ConfigurationError, match=r"expected \.png"):
        check_target(tmp_path / "out.xyz", given, suffixes=(".png",))
    check_target(tmp_path / "not" / "there" / "yet.PNG", given, suffixes=(".png",))
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("name", ["out.tif", "n" * 251 + ".tif", "µ" * 125 + ".tif"])
def test_a_name_may_be_as_long_as_the_file_system_lets_it_be(tmp_path, name):
    folder = tmp_path / "made" / "here"
    write_whole(folder / name, b"restored")
    assert (folder / name).read_bytes() == b"restored"
    assert [path.name for path in folder.iterdir()] == [name]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(given, tmp_path):
    def fails() -> None:
        with whole_file(given) as partial:
            partial.write_bytes(b"half")
            raise RuntimeError("the lights went out")

    with pytest.raises(RuntimeError, match="lights"):
        fails()
    assert given.read_bytes() == b"measured"
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_an_error_of_the_file_system_names_the_file_that_was_asked_for(given):
    with pytest.raises(OSError, match=r"in\.png/out\.tif"):
        write_whole(given / "out.tif", b"")


@pytest.mark.parametrize(("error", "becomes", "said"), [
    (UnsupportedImage("it is a film"), UnsupportedImage, "cells.tif: it is a film"),
    (UnsupportedImage("cells.tif has 2 planes"), UnsupportedImage, "cells.tif has 2 planes"),
    (ModelMissing("no model is named x"), ModelMissing, "no model is named x"),
    (PermissionError(13, "Permission denied", "cells.tif"), UnreadableImage, "cells.tif: Permission denied."),
    (OSError(28, "No space left on device", "out.png"), OSError, "[Errno 28] No space left on device: 'out.png'"),
])  # fmt: skip
def test_errors_about_a_file_begin_with_its_name_and_others_do_not(error, becomes, said):
    with pytest.raises(becomes) as raised, naming(Path("cells.tif")):
        raise error
    assert str(raised.value) == said
