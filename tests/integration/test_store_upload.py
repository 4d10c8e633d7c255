"""Sending a folder to the store."""

from __future__ import annotations

import pytest

from refocus.errors import ConfigurationError
from refocus.io.upload import upload

pytestmark = pytest.mark.store


@pytest.fixture
def folder(tmp_path):
    for name, data in {"a.tif": b"1", "sub/b.tif": b"22", ".hidden": b"3", ".cache/c.tif": b"4"}.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "images"


def test_a_folder_goes_under_the_prefix_and_what_is_hidden_stays_behind(store, folder):
    assert upload(store, folder, "raw/plate7") == (2, 0)
    assert [entry.key for entry in store.list()] == ["raw/plate7/a.tif", "raw/plate7/sub/b.tif"]


def test_what_is_there_with_the_same_bytes_is_not_sent_again(store, folder):
    upload(store, folder, "raw/plate7/")
    (folder / "a.tif").write_bytes(b"other")
    assert upload(store, folder, store.uri("raw/plate7")) == (1, 1)
    assert store.get("raw/plate7/a.tif") == b"other"


def test_a_single_file_keeps_its_name(store, folder):
    upload(store, folder / "a.tif", "raw")
    assert store.get("raw/a.tif") == b"1"


@pytest.mark.parametrize("root", ["", "/", "s3://{bucket}", "s3://{bucket}/"])
def test_the_bucket_itself_takes_a_folder_without_a_slash_before_its_keys(store, folder, root):
    upload(store, folder, root.format(bucket=store.settings.bucket))
    assert [entry.key for entry in store.list()] == ["a.tif", "sub/b.tif"]


def test_an_address_in_another_bucket_is_refused(store, folder):
    with pytest.raises(ConfigurationError, match="'theirs', but the store is set to"):
        upload(store, folder, "s3://theirs/raw")
    assert not list(store.list())


def test_a_folder_without_files_is_an_error(store, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no file"):
        upload(store, tmp_path / "empty", "raw")


def test_a_large_file_goes_in_parts_and_is_kept_the_second_time(store, tmp_path, monkeypatch):
    monkeypatch.setattr("refocus.io.store.PART_BYTES", 5 * 2**20)
    data = bytes(range(256)) * (12 * 2**20 // 256)
    (tmp_path / "stack.tif").write_bytes(data)
    assert upload(store, tmp_path, "raw/") == (1, 0)
    assert store.get("raw/stack.tif") == data
    assert upload(store, tmp_path, "raw/") == (0, 1)
    (tmp_path / "stack.tif").write_bytes(data[::-1])
    assert upload(store, tmp_path, "raw/") == (1, 0)
    assert store.get("raw/stack.tif") == data[::-1]
