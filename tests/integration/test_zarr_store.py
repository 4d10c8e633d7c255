"""OME-Zarr read from the object store, a chunk a request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from refocus.errors import BucketMissing, ObjectChanged, StoreUnreachable, UnreadableImage
from refocus.io.store import ObjectStore
from refocus.io.upload import upload
from refocus.io.zarr import ZarrSource, etag_of_folder, zarr_roots
from refocus.testing.faulty_store import SLOW_DOWN, FaultyStore
from refocus.zstack import Acquisition

pytestmark = pytest.mark.store

PIXELS = np.random.default_rng(0).integers(0, 60_000, (6, 40, 50), np.uint16)


def ome_zarr(folder: Path, version: str, **options) -> Path:
    image = {
        "axes": [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0.5, 0.2, 0.2]}]}],
    }
    attributes = {"multiscales": [image]} if version == "0.4" else {"ome": {"version": "0.5", "multiscales": [image]}}
    group = zarr.create_group(folder, zarr_format=2 if version == "0.4" else 3, attributes=attributes)
    group.create_array("0", shape=PIXELS.shape, dtype="u2", chunks=(1, 20, 50), **options)[...] = PIXELS
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_image_in_the_store_reads_as_the_folder_does(store, tmp_path, version):
    upload(store, ome_zarr(tmp_path / "a.zarr", version), "raw/a.zarr")
    with ZarrSource((store, "raw/a.zarr")) as image:
        assert (image.axes, image.shape) == ("ZYX", (6, 40, 50))
        assert image.name == store.uri("raw/a.zarr")
        assert image.acquisition == Acquisition(pixel_size_um=0.2, z_step_um=0.5)
        np.testing.assert_array_equal(image.stack().pixels, PIXELS)
    assert zarr_roots(entry.key for entry in store.list("raw/")) == ["raw/a.zarr"]


def test_shards_are_read_by_ranges(store, tmp_path):
    upload(store, ome_zarr(tmp_path / "a.zarr", "0.5", shards=(6, 40, 50)), "raw/a.zarr")
    shard = max(store.list("raw/a.zarr"), key=lambda entry: entry.size_bytes)
    with FaultyStore(store.settings) as proxy:
        image = ZarrSource((ObjectStore(proxy.settings), "raw/a.zarr"))
        before = len(proxy.seen)
        np.testing.assert_array_equal(image.plane(z=4), PIXELS[4])
        asked = [request for request in proxy.seen[before:] if request.method == "GET"]
    # Two of twelve chunks and the shard's index, not the shard.
    assert 0 < len(asked) <= 4
    assert shard.size_bytes > PIXELS.nbytes / 2


def test_a_store_that_says_slow_down_is_asked_again(store, tmp_path):
    upload(store, ome_zarr(tmp_path / "a.zarr", "0.5"), "raw/a.zarr")
    with FaultyStore(store.settings) as proxy:
        image = ZarrSource((ObjectStore(proxy.settings), "raw/a.zarr"))
        proxy.inject(SLOW_DOWN, times=2)
        np.testing.assert_array_equal(image.plane(z=2), PIXELS[2])
        assert proxy.count(SLOW_DOWN) == 2


def test_a_store_that_is_gone_is_no_broken_image(store, tmp_path):
    upload(store, ome_zarr(tmp_path / "a.zarr", "0.5"), "raw/a.zarr")
    impatient = store.settings.model_copy(update={"attempts": 1})
    with FaultyStore(impatient) as proxy:
        image = ZarrSource((ObjectStore(proxy.settings), "raw/a.zarr"))
        proxy.inject(SLOW_DOWN, times=None)
        with pytest.raises(StoreUnreachable):
            image.plane(z=0)
    nowhere = ObjectStore(store.settings.model_copy(update={"bucket": "no-such-bucket"}))
    with pytest.raises(BucketMissing):
        ZarrSource((nowhere, "raw/a.zarr"))


def test_a_prefix_without_a_group_is_unreadable(store):
    with pytest.raises(UnreadableImage, match="no Zarr group"):
        ZarrSource((store, "raw/nothing.zarr"))


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_an_image_that_changes_while_it_is_read_is_noticed(store, tmp_path, change):
    upload(store, ome_zarr(tmp_path / "a.zarr", "0.5"), "raw/a.zarr")
    planned = etag_of_folder(store.list("raw/a.zarr/"))
    image = ZarrSource((store, "raw/a.zarr"), etag=planned)
    np.testing.assert_array_equal(image.plane(z=0), PIXELS[0])
    chunk = next(entry.key for entry in store.list("raw/a.zarr/0/c/3"))
    if change == "removed":
        store.delete(chunk)
    else:
        store.put(chunk, store.get(chunk)[::-1])
    with pytest.raises(ObjectChanged):
        image.plane(z=3)
    with pytest.raises(ObjectChanged, match="not the image that it was"):
        ZarrSource((store, "raw/a.zarr"), etag=planned)


def test_chunks_of_several_planes_are_fetched_once_for_all_of_them(store, tmp_path):
    group = zarr.open_group(ome_zarr(tmp_path / "a.zarr", "0.5"))
    group.create_array("0", data=PIXELS, chunks=(3, 20, 50), overwrite=True)
    upload(store, tmp_path / "a.zarr", "raw/a.zarr")
    with FaultyStore(store.settings) as proxy:
        image = ZarrSource((ObjectStore(proxy.settings), "raw/a.zarr"))
        before = len(proxy.seen)
        for z in range(6):
            np.testing.assert_array_equal(image.window(slice(0, 15), slice(5, 45), z=z), PIXELS[z, :15, 5:45])
        assert len(proxy.seen) - before == 2
