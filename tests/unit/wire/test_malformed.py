"""Whatever arrives, a decoder answers with an image or with one of our errors."""

from __future__ import annotations

import gc
import io
import struct
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refocus.errors import ImageTooLarge, InputError, UnreadableImage
from refocus.wire.codec import decode, encode
from refocus.wire.image import ImageLimits, Provenance, WireImage

from .conftest import tiff_bytes

LIMITS = ImageLimits(max_body_bytes=10**6, max_pixels=10**5, max_pages=8, max_decoded_bytes=10**6)
NAMES = ["tiff16", "tiff_rgb_deflate", "tiff_tiled_lzw", "tiff_jpeg", "tiff_zstd_big", "ome", "imagej", "png16",
         "png_rgb", "jpeg"]  # fmt: skip
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(body: bytes) -> WireImage | None:
    """Decode; and whatever can be decoded can be sent back."""
    try:
        image = decode(body, LIMITS)
    except InputError:
        return None
    np.testing.assert_array_equal(decode(encode(image, None, Provenance("m", "d"))).planes, image.planes)
    return image


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(data=st.data())
def test_changed_bytes_give_an_image_or_an_input_error(name, sound_bodies, data):
    body = bytearray(sound_bodies[name])
    header_first = (
        st.integers(0, 300) | st.integers(0, len(body) - 1) | st.integers(max(0, len(body) - 300), len(body) - 1)
    )
    for place in data.draw(st.lists(header_first, min_size=1, max_size=8)):
        body[min(place, len(body) - 1)] = data.draw(st.integers(0, 255))
    image = outcome(bytes(body))
    assert image is None or image.planes.nbytes <= LIMITS.max_decoded_bytes


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_is_called_unreadable(name, sound_bodies):
    body = sound_bodies[name]
    for length in np.unique(np.linspace(0, len(body) - 1, 60).astype(int)).tolist():
        try:
            image = decode(body[:length], LIMITS)
        except UnreadableImage:
            continue
        # What is cut off may have been padding or metadata behind the pixels, never pixels.
        np.testing.assert_array_equal(image.planes, decode(body, LIMITS).planes, err_msg=f"{name} at {length}")


@FEW
@given(
    st.binary(max_size=2000),
    st.sampled_from([b"", b"II*\0", b"MM\0*", b"II+\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]),
)
def test_noise_behind_a_signature_is_refused(noise, signature):
    outcome(signature + noise)


def test_broken_pngs_do_not_wear_out_the_interpreter(sound_bodies):
    # Each error inside libpng costs imagecodecs one reference to None; a server would end after some ten thousand.
    body = sound_bodies["png16"]
    generator = np.random.default_rng(3)
    # What earlier tests left for the collector holds references to None, too: it goes now, not while counting.
    gc.collect()
    gc.disable()
    try:
        before = sys.getrefcount(None)
        for _ in range(2000):
            broken = bytearray(body)
            broken[int(generator.integers(8, len(body)))] ^= 1 << int(generator.integers(8))
            outcome(bytes(broken))
        # Pythons from 3.12 on do not count references to None: the difference is 0 there.
        assert sys.getrefcount(None) - before > -50
    finally:
        gc.enable()


def test_a_resolution_that_makes_no_sense_does_not_come_back():
    sink = io.BytesIO()
    tifffile.imwrite(sink, np.ones((8, 8), np.uint8), resolution=(300, 300), resolutionunit="INCH", metadata=None)
    body = bytearray(sink.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(body))) as file:
        unit, ratio = (file.pages[0].tags[code].valueoffset for code in (296, 282))
    for place, value in ((unit, 4242), (ratio, 0), (ratio + 4, 0)):
        broken = bytearray(body)
        struct.pack_into("<H", broken, place, value)
        assert outcome(bytes(broken)) is not None


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("interlaced", [False, True])
def test_palettes_and_interlacing_are_read(interlaced):
    generator = np.random.default_rng(4)
    indices = generator.integers(0, 16, (21, 13), dtype=np.uint8)
    palette = generator.integers(0, 256, (16, 3), dtype=np.uint8)
    # Adam7's seven grids, PNG specification section 8.2; every row with filter 0.
    adam7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    grids = [indices[y::dy, x::dx] for x, y, dx, dy in adam7] if interlaced else [indices]
    rows = b"".join(b"\0" + row.tobytes() for grid in grids if grid.size for row in grid)
    header = struct.pack(">IIBBBBB", 13, 21, 8, 3, 0, 0, int(interlaced))
    body = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"PLTE", palette.tobytes())
    body += png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode(body).planes[0], palette[indices])


OME_2016 = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'


@pytest.mark.timeout(30)
@pytest.mark.parametrize("description", [
    OME_2016 + " " * 9 * 10**5 + "</OME>",
    OME_2016 + '<MapAnnotation ID="Annotation:Refocus">' * 23_000 + "</OME>",
    "<OME" + ' EmissionWavelength="' * 45_000,
], ids=["blanks", "annotations that never close", "an element that never closes"])  # fmt: skip
def test_no_description_takes_longer_than_its_length(description):
    # Patterns that look on from every place to the end would take minutes, and stop everything else meanwhile.
    assert outcome(tiff_bytes(np.zeros((8, 8), np.uint8), description=description, metadata=None)) is not None


def test_brackets_without_end_are_free_text():
    assert outcome(tiff_bytes(np.zeros((8, 8), np.uint8), description="[" * 10**5, metadata=None)) is not None


def directories(entries: dict[int, tuple[int, int, int]], *, pages: int, size: int) -> bytes:
    """A TIFF of 16 x 16 pixels, page after page with the same entries besides, filled up to so many bytes."""
    usual = {256: (4, 1, 16), 257: (4, 1, 16), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8),
             277: (3, 1, 1), 278: (4, 1, 16), 279: (4, 1, 256)}  # fmt: skip
    body = b"II*\0" + struct.pack("<I", 8)
    for page in range(pages):
        rows = [struct.pack("<HHII", code, *entry) for code, entry in sorted((usual | entries).items())]
        following = 0 if page == pages - 1 else len(body) + 2 + 12 * len(rows) + 4
        body += struct.pack("<H", len(rows)) + b"".join(rows) + struct.pack("<I", following)
    return body + bytes(size - len(body))


def test_tags_that_share_their_bytes_take_no_more_memory_than_tags_may():
    body = directories({50_000 + n: (1, 300_000, 0) for n in range(60)}, pages=8, size=310_000)
    tracemalloc.start()
    try:
        image = decode(body, LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()
    assert 0 < len(image.tags) < 60


def test_strips_that_share_their_bytes_are_counted_as_often_as_they_are_read():
    # Sixteen strips of deflate, each all of the file.
    table = struct.pack("<16I", *[0] * 16) + struct.pack("<16I", *[90_000] * 16)
    body = directories(
        {259: (3, 1, 8), 278: (4, 1, 1), 273: (4, 16, 90_000), 279: (4, 16, 90_064)}, pages=1, size=90_000
    )
    with pytest.raises(ImageTooLarge, match="1440000 bytes"):
        decode(body + table, LIMITS)


def test_chunks_without_number_are_not_collected():
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    body = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"tEXt", b"") * (2**18 + 1) + png_chunk(b"IEND", b"")
    with pytest.raises(ImageTooLarge, match="chunks"):
        decode(body)
