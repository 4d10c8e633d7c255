"""What a JPEG says of itself stays with the image when it becomes a PNG or a TIFF."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from refocus.wire.codec import decode, encode

ORIENTATION = 0x0112


def photo(**options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", **options)
    return sink.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_answer_is_shown_as_upright_as_the_photo_was(order):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif.endian = order
    body = photo(exif=exif)
    shown = Image.open(io.BytesIO(encode(decode(body))))
    assert shown.format == "PNG"
    assert shown.getexif()[ORIENTATION] == 6
    with tifffile.TiffFile(io.BytesIO(encode(decode(body), "tiff"))) as file:
        assert file.pages[0].tags["Orientation"].value == 6


def test_colour_profile_and_density_stay():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    body = photo(icc_profile=profile, dpi=(300, 300))
    shown = Image.open(io.BytesIO(encode(decode(body))))
    assert shown.info["icc_profile"] == profile
    # A whole number of pixels a metre.
    assert shown.info["dpi"] == pytest.approx((300, 300), abs=0.02)
    with tifffile.TiffFile(io.BytesIO(encode(decode(body), "tiff"))) as file:
        assert file.pages[0].tags[34675].value == profile


def test_a_profile_for_other_colours_is_left_behind():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert "icc_profile" not in Image.open(io.BytesIO(encode(decode(photo(icc_profile=profile))))).info


def test_a_profile_in_several_pieces_is_put_together():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = srgb + bytes(np.random.default_rng(0).integers(0, 256, 150_000, dtype=np.uint8))
    assert Image.open(io.BytesIO(encode(decode(photo(icc_profile=profile))))).info["icc_profile"] == profile


def test_broken_exif_does_not_keep_an_image_from_being_read():
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0nonsense"):
        assert encode(decode(photo(exif=exif)))
        assert encode(decode(photo(exif=exif)), "tiff")
