"""Results on disk: whole or not at all."""

from __future__ import annotations

import pytest

from refocus.wire.files import whole_file, write_whole


@pytest.fixture
def given(tmp_path):
    path = tmp_path / "in.png"
    path.write_bytes(b"measured")
    return path


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
