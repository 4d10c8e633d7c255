"""What the pages of a TIFF say for themselves goes back with them."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from refocus.wire.image import ImageLimits, Provenance
from refocus.wire.tiff import decode_tiff, encode_tiff

SOFTWARE, PAGE_NAME = 305, 285


def written(count: int = 3, *, compression: str | None = None, subifds: int = 0) -> bytes:
    """Pages with a description, a name and a resolution each, big-endian."""
    rng = np.random.default_rng(0)
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink, byteorder=">") as file:
        for number in range(count):
            pixels = rng.integers(0, 65536, (40, 48), np.uint16)
            file.write(
                pixels, description=f"z = {number} µm".encode("latin-1"), resolution=(1000 + number, 1000 + number),
                resolutionunit="CENTIMETER", metadata=None, software=False, subifds=subifds, compression=compression,
                extratags=[(PAGE_NAME, 2, 7, f"page {number}", True)],
            )  # fmt: skip
            for _ in range(subifds):
                file.write(pixels[::2, ::2], subfiletype=1, metadata=None, software=False, compression=compression)
    return sink.getvalue()


@pytest.mark.parametrize("how", [{}, {"compression": "zlib"}, {"subifds": 1}])
def test_each_page_keeps_its_description_name_and_resolution(how) -> None:
    image = decode_tiff(written(**how), ImageLimits())
    answer = encode_tiff(replace(image, planes=image.planes // 2), Provenance("fluorescence", "0" * 64))
    with tifffile.TiffFile(io.BytesIO(answer)) as file:
        assert len(file.pages) == 3
        for number, page in enumerate(file.pages):
            description = bytes(page.tags[270].value, "latin-1") if number else page.tags[270].value
            assert (f"z = {number} µm".encode("latin-1") if number else "z = 0 µm") in description
            assert page.tags[PAGE_NAME].value == f"page {number}"
            assert page.tags[282].value == (1000 + number, 1)
            np.testing.assert_array_equal(page.asarray(), image.planes[number] // 2)
            assert len(page.pages or ()) == how.get("subifds", 0)


def test_planes_that_were_added_say_nothing_of_their_own() -> None:
    image = decode_tiff(written(), ImageLimits())
    answer = encode_tiff(replace(image, planes=np.concatenate([image.planes, image.planes])), None)
    with tifffile.TiffFile(io.BytesIO(answer)) as file:
        names = [page.tags[PAGE_NAME].value if PAGE_NAME in page.tags else None for page in file.pages]
        assert names == ["page 0", "page 1", "page 2", None, None, None]
        assert file.pages[5].tags[282].value == (1000, 1)


def test_pages_that_say_nothing_new_are_written_in_one_piece(grey16) -> None:
    sink = io.BytesIO()
    tifffile.imwrite(sink, np.stack([grey16, grey16]), metadata=None, resolution=(10, 10), resolutionunit="CENTIMETER")
    assert decode_tiff(sink.getvalue(), ImageLimits()).options["further_pages"] == ()


def test_descriptions_that_all_pages_point_to_are_copied_no_more_often_than_the_file_is_long() -> None:
    body = bytearray(written(12))
    long = len(body)
    body += b"x" * 200_000
    with tifffile.TiffFile(io.BytesIO(bytes(body))) as file:
        entries = [page.tags[270].offset for page in file.pages]
    for offset in entries:
        body[offset + 4 : offset + 12] = (200_000).to_bytes(4, "big") + long.to_bytes(4, "big")
    image = decode_tiff(bytes(body), ImageLimits())
    assert sum(len(said) for said, _ in image.options["further_pages"]) <= len(body)
