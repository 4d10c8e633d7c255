"""An object read like a file, by ranges."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import tifffile

from refocus.errors import ObjectChanged, ObjectMissing, StoreError, StoreUnreachable, UnreadableImage
from refocus.io.microscopy import open_image
from refocus.io.ranged import RangedObject
from refocus.io.store import ObjectStore
from refocus.testing.faulty_store import SLOW_DOWN, FaultyStore

pytestmark = pytest.mark.store


def tiff(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def test_it_reads_seeks_and_tells_as_a_file_does(store):
    data = os.urandom(1_000_000)
    store.put("key", data)
    ours, theirs = RangedObject.open(store, "key"), io.BytesIO(data)
    rng = np.random.default_rng(0)
    for _ in range(100):
        offset, whence = int(rng.integers(0, len(data))), int(rng.integers(0, 3))
        offset = -offset if whence == io.SEEK_END else offset // (1 if whence == io.SEEK_SET else 10)
        assert ours.seek(offset, whence) == theirs.seek(offset, whence)
        size = int(rng.integers(0, 400_000))
        assert ours.read(size) == theirs.read(size)
        assert ours.tell() == theirs.tell()
    buffer = bytearray(1000)
    ours.seek(10)
    assert ours.readinto(buffer) == 1000
    assert bytes(buffer) == data[10:1010]


def test_small_reads_share_a_block(store):
    store.put("key", os.urandom(1_000_000))
    with FaultyStore(store.settings) as proxy:
        file = RangedObject.open(ObjectStore(proxy.settings), "key")
        for offset in range(0, 200_000, 100):
            file.seek(offset)
            file.read(100)
        assert sum(request.method == "GET" for request in proxy.seen) == 1


def test_one_plane_of_a_large_stack_costs_its_own_bytes(store):
    pixels = np.random.default_rng(0).integers(0, 60_000, (40, 256, 512), np.uint16)
    data = tiff(pixels, metadata={"axes": "ZYX"})
    store.put("stack.tif", data)
    file = RangedObject.open(store, "stack.tif")
    with open_image(file, name="stack.tif") as image:
        assert (image.axes, image.shape) == ("ZYX", (40, 256, 512))
        assert file.bytes_fetched <= 2 * 256 * 1024  # first and last block: metadata without pixels
        before = file.bytes_fetched
        np.testing.assert_array_equal(image.plane(z=25), pixels[25])
        assert file.bytes_fetched - before == pixels[25].nbytes


def test_one_plane_of_a_compressed_stack_costs_little_more_than_its_own_bytes(store):
    pixels = np.random.default_rng(0).integers(0, 60_000, (40, 256, 512), np.uint16)
    data = tiff(pixels, metadata={"axes": "ZYX"}, compression="zlib", rowsperstrip=64)
    store.put("stack.tif", data)
    file = RangedObject.open(store, "stack.tif")
    with open_image(file, name="stack.tif") as image:
        before = file.bytes_fetched
        np.testing.assert_array_equal(image.plane(z=25), pixels[25])
        # Compressed noise is as large as the noise; blocks of 256 KiB at both ends.
        assert file.bytes_fetched - before <= pixels[25].nbytes + 2 * 256 * 1024


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_stack_written_page_by_page_is_opened_for_its_directories_alone(store, compression):
    # As Micro-Manager and many exporters write it: each directory lies between the pixels of two planes.
    first = np.random.default_rng(0).integers(0, 60_000, (256, 512), np.uint16)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        for z in range(60):
            tiff.write(first + z, contiguous=False, metadata=None, compression=compression)
    store.put("stack.tif", file.getvalue())
    ranged = RangedObject.open(store, "stack.tif")
    with open_image(ranged, name="stack.tif", axes="ZYX") as image:
        # 256 KiB of header at once, then one or two blocks of 8 KiB a directory: of 15 MB in all.
        assert ranged.bytes_fetched < 256 * 1024 + 60 * 2 * 8 * 1024
        assert ranged.requests <= 1 + 60 * 2
        before = ranged.bytes_fetched
        for z in range(10, 20):
            np.testing.assert_array_equal(image.plane(z=z), first + z)
        assert ranged.bytes_fetched - before <= 10 * first.nbytes


def test_an_array_of_any_shape_can_be_read_into(store):
    pixels = np.arange(6 * 7, dtype=np.uint16).reshape(6, 7)
    store.put("key", pixels.tobytes())
    into = np.empty_like(pixels)
    assert RangedObject.open(store, "key").readinto(into) == pixels.nbytes
    np.testing.assert_array_equal(into, pixels)


def test_a_wrong_size_is_noticed_instead_of_giving_fewer_bytes(store):
    etag = store.put("key", b"x" * 1000)
    file = RangedObject(store, "key", size_bytes=2000, etag=etag)
    with pytest.raises(StoreError, match="1000 bytes where 2000"):
        file.read()


def test_an_object_replaced_while_it_is_read_raises_instead_of_mixing(store):
    pixels = np.zeros((8, 512, 512), np.uint16)
    store.put("stack.tif", tiff(pixels, metadata={"axes": "ZYX"}))
    with open_image(RangedObject.open(store, "stack.tif"), name="stack.tif") as image:  # type: ignore[arg-type]
        image.plane(z=0)
        store.put("stack.tif", tiff(pixels + 1, metadata={"axes": "ZYX"}))
        with pytest.raises(ObjectChanged):
            image.plane(z=5)


def test_a_store_that_fails_is_not_an_image_that_is_broken(store):
    store.put("stack.tif", tiff(np.zeros((8, 512, 512), np.uint16), metadata={"axes": "ZYX"}))
    with FaultyStore(store.settings.model_copy(update={"attempts": 2})) as proxy:
        shaky = ObjectStore(proxy.settings)
        file = RangedObject.open(shaky, "stack.tif")
        proxy.inject(SLOW_DOWN, times=None)
        with pytest.raises(StoreUnreachable):
            open_image(file, name="stack.tif")
        proxy.heal()
        image = open_image(RangedObject.open(shaky, "stack.tif"), name="stack.tif")
        proxy.inject(SLOW_DOWN, times=None)
        with pytest.raises(StoreUnreachable):
            image.plane(z=3)


def test_a_missing_object_is_missing_when_it_is_opened(store):
    with pytest.raises(ObjectMissing):
        RangedObject.open(store, "no/such.tif")


def test_an_empty_object_is_no_image(store):
    store.put("empty.tif", b"")
    with pytest.raises(UnreadableImage, match=r"empty\.tif"):
        open_image(RangedObject.open(store, "empty.tif"), name="empty.tif")
