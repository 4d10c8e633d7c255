from __future__ import annotations

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from refocus.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from refocus.wire.codec import decode, encode, from_array, sniff
from refocus.wire.image import DTYPES, ImageLimits, Provenance

from .conftest import tiff_bytes

PROVENANCE = Provenance("deep_r", "sha256:abc")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("container", ["tiff", "png"])
def test_pixels_come_back_bit_for_bit(dtype, color, container):
    pixels = (np.random.default_rng(0).random((19, 23, 3) if color else (19, 23)) * 255).astype(dtype)
    if dtype == "float32" and container == "png":
        with pytest.raises(UnsupportedImage, match="image/tiff"):
            encode(from_array(pixels), "png")
        return
    back = decode(encode(from_array(pixels), container, PROVENANCE))
    assert back.container == container
    assert back.planes.dtype == pixels.dtype
    np.testing.assert_array_equal(back.planes[0], pixels)


def test_every_sound_body_is_read_as_its_own_library_reads_it(sound_bodies, grey16, rgb8):
    for name, body in sound_bodies.items():
        planes = decode(body).planes
        expected = rgb8 if "rgb" in name or "jpeg" in name else grey16
        assert planes.shape[0] == (2 if name in ("ome", "imagej") else 1), name
        if name == "tiff_jpeg":
            np.testing.assert_array_equal(planes[0], tifffile.imread(io.BytesIO(body)))
        elif name == "jpeg":
            np.testing.assert_array_equal(planes[0], imagecodecs.imread(body))
        else:
            np.testing.assert_array_equal(planes[-1], expected, err_msg=name)


def test_answers_are_read_by_the_library_that_wrote_the_question(sound_bodies):
    for name, body in sound_bodies.items():
        image = decode(body)
        answer = encode(image, None, PROVENANCE)
        assert sniff(answer) == ("png" if name.startswith(("png", "jpeg")) else "tiff")
        read = imagecodecs.imread(answer) if name.startswith(("png", "jpeg")) else tifffile.imread(io.BytesIO(answer))
        np.testing.assert_array_equal(np.squeeze(image.planes), read, err_msg=name)


def test_a_written_tiff_keeps_byte_order_compression_and_size_class(grey16):
    body = tiff_bytes(grey16, compression="zstd", bigtiff=True, byteorder=">")
    with tifffile.TiffFile(io.BytesIO(encode(decode(body), None, PROVENANCE))) as answer:
        assert answer.is_bigtiff
        assert answer.byteorder == ">"
        assert answer.pages[0].compression == 50000


def test_alpha_is_carried_along_untouched(rgb8):
    alpha = np.arange(37 * 53, dtype=np.uint8).reshape(37, 53)
    rgba = np.concatenate([rgb8, alpha[..., None]], axis=2)
    tiff = tiff_bytes(rgba, photometric="rgb", extrasamples=["unassalpha"])
    for body in (imagecodecs.png_encode(rgba), tiff):
        image = decode(body)
        np.testing.assert_array_equal(image.planes[0], rgb8)
        np.testing.assert_array_equal(imagecodecs.imread(encode(image)), rgba)


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_a_second_grey_sample_is_carried_along_where_it_is_opacity(grey16, kind):
    pair = np.stack([grey16, grey16[::-1]], axis=2)
    image = decode(tiff_bytes(pair, photometric="minisblack", planarconfig="contig", extrasamples=[kind]))
    np.testing.assert_array_equal(image.planes[0], grey16)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(encode(image))), pair)


def test_a_second_grey_sample_that_nobody_calls_opacity_is_refused(grey16):
    pair = np.stack([grey16, grey16[::-1]], axis=2)
    for extra in ({"extrasamples": ["unspecified"]}, {}):
        with pytest.raises(UnsupportedImage, match=r"may be a channel.*channels as pages"):
            decode(tiff_bytes(pair, photometric="minisblack", planarconfig="contig", **extra))


def test_planar_colour_is_read_as_colour(rgb8):
    body = tiff_bytes(np.moveaxis(rgb8, 2, 0).copy(), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(decode(body).planes[0], rgb8)


def test_thumbnails_in_the_chain_are_not_planes(grey16):
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink) as file:
        file.write(grey16, metadata=None)
        file.write(grey16[::4, ::4], subfiletype=1, metadata=None)
    assert decode(sink.getvalue()).planes.shape == (1, 37, 53)


def test_pages_of_different_shapes_are_refused_by_name(grey16):
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink) as file:
        file.write(grey16, metadata=None)
        file.write(grey16[:10], metadata=None)
    with pytest.raises(UnsupportedImage, match="expected pages of one shape"):
        decode(sink.getvalue())


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "predictor": True}, {"byteorder": ">"}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pixel_type_comes_back_as_it_went_in(dtype, options):
    generator = np.random.default_rng(3)
    if np.dtype(dtype).kind == "f":
        pixels = generator.normal(0, 1e6, (19, 23)).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        pixels = generator.integers(limits.min, limits.max, (19, 23), dtype, endpoint=True)
    answer = encode(decode(tiff_bytes(pixels, **options)), None, PROVENANCE)
    back = tifffile.imread(io.BytesIO(answer))
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)


@pytest.mark.parametrize("dtype", ["uint64", "float16", "complex64"])
def test_pixel_types_that_cannot_come_back_are_refused(dtype):
    with pytest.raises(UnsupportedImage, match="integers of 8, 16 or 32 bit"):
        decode(tiff_bytes(np.zeros((8, 8), dtype)))


def test_images_without_grey_levels_are_refused_with_what_to_send_instead():
    with pytest.raises(UnsupportedImage, match=r"black and white.*made from"):
        decode(tiff_bytes(np.zeros((8, 8), bool)))
    sink = io.BytesIO()
    Image.fromarray(np.eye(8, dtype=bool)).save(sink, "PNG")
    with pytest.raises(UnsupportedImage, match=r"two levels.*made from"):
        decode(sink.getvalue())
    colors = np.arange(3 * 256, dtype=np.uint16).reshape(3, 256)
    with pytest.raises(UnsupportedImage, match=r"colour map.*convert it to RGB"):
        decode(tiff_bytes(np.zeros((8, 8), np.uint8), photometric="palette", colormap=colors))


def test_values_that_are_no_numbers_are_refused():
    pixels = np.ones((2, 8, 9), np.float32)
    pixels[1, 3, 5], pixels[1, 7, 2] = np.nan, np.inf
    with pytest.raises(UnsupportedImage, match=r"2 of 144 values .* NaN .* plane 1, row 3, column 5"):
        decode(tiff_bytes(pixels, photometric="minisblack"))


def test_what_differs_between_pages_is_said(grey16):
    for other, said in (
        (grey16[:30], "Page 1 of the TIFF is 53 x 30 uint16 and the first is 53 x 37 uint16"),
        (grey16.astype(np.uint8), "Page 1 of the TIFF is 53 x 37 uint8 and"),
        (grey16.astype(np.int16), "Page 1 of the TIFF is 53 x 37 int16 and"),
    ):
        sink = io.BytesIO()
        with tifffile.TiffWriter(sink) as file:
            for page in (grey16, other):
                file.write(page, contiguous=False, metadata=None)
        with pytest.raises(UnsupportedImage) as refused:
            decode(sink.getvalue())
        assert str(refused.value).startswith(said)


def test_a_compression_that_is_not_read_is_called_by_its_name(grey16):
    with pytest.raises(UnsupportedImage, match=r"compressed by JPEG 2000 \(method 34712\); expected none"):
        decode(tiff_bytes(grey16, compression="jpeg2000"))


def test_what_is_no_image_is_told_to_people_who_sent_none():
    for body, said in ((b"", "The file is empty; expected"), (b"<html>login", "The file begins with b'<html>lo'")):
        with pytest.raises(UnreadableImage) as refused:
            decode(body)
        assert str(refused.value).startswith(said)


@pytest.mark.parametrize("top", [3e38, 1e300, 1e-100])
def test_values_beyond_single_precision_are_refused_and_others_are_not(top):
    ramp = np.linspace(-1, 1, 64).reshape(8, 8)
    with pytest.raises(UnsupportedImage, match=r"single precision.*Multiply"):
        decode(tiff_bytes(ramp * top))
    for scale in (1e36, 1e-36, 0.0):
        assert decode(tiff_bytes((ramp * scale).astype(np.float32))).planes.shape == (1, 8, 8)


def test_what_is_no_image_is_called_so():
    for body in (b"", b"hello, I am text named .tif", b"%PDF-1.7", b"\0" * 100):
        with pytest.raises(UnreadableImage, match="expected"):
            decode(body)


def png_claiming(width_px: int, height_px: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width_px, height_px, 16, 0, 0, 0, 0)
    idat = zlib.compress(bytes(10**6), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def tiff_claiming(width_px: int, height_px: int) -> bytes:
    body = bytearray(tiff_bytes(np.zeros((64, 64), np.uint16), compression="zlib", metadata=None))
    with tifffile.TiffFile(io.BytesIO(bytes(body))) as file:
        for code, value in ((256, width_px), (257, height_px), (278, height_px)):
            tag = file.pages[0].tags[code]
            struct.pack_into("<H" if tag.dtype == 3 else "<I", body, tag.valueoffset, min(value, 65535))
    return bytes(body)


def jpeg_claiming(width_px: int, height_px: int) -> bytes:
    body = bytearray(imagecodecs.jpeg8_encode(np.zeros((16, 16), np.uint8)))
    struct.pack_into(">HH", body, body.index(b"\xff\xc0") + 5, height_px, width_px)
    return bytes(body)


def test_a_claim_of_ten_thousand_megapixels_costs_nothing():
    import tracemalloc

    bodies = [png_claiming(100_000, 100_000), tiff_claiming(65_535, 65_535), jpeg_claiming(65_000, 65_000)]
    tracemalloc.start()
    for body in bodies:
        with pytest.raises(ImageTooLarge, match="limit is"):
            decode(body)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The claims are 8 to 20 GB; reading headers takes kilobytes.
    assert peak_bytes < 2**20


def test_each_limit_holds_by_itself(grey16):
    body = tiff_bytes(np.stack([grey16] * 5))
    for limits, words in (
        (ImageLimits(max_body_bytes=100), "body"),
        (ImageLimits(max_pixels=100), "pixels a plane"),
        (ImageLimits(max_pages=4), "pages"),
        (ImageLimits(max_decoded_bytes=4 * grey16.nbytes), "Decoded"),
    ):
        with pytest.raises(ImageTooLarge, match=words):
            decode(body, limits)


def test_a_small_image_in_an_enormous_tile_is_refused(grey16):
    body = bytearray(tiff_bytes(grey16, tile=(16, 16), compression="zlib", metadata=None))
    with tifffile.TiffFile(io.BytesIO(bytes(body))) as file:
        for code in (322, 323):
            struct.pack_into("<H", body, file.pages[0].tags[code].valueoffset, 65_520)
    with pytest.raises(ImageTooLarge):
        decode(bytes(body))


def test_directories_in_a_circle_end(grey16):
    body = bytearray(tiff_bytes(grey16, metadata=None))
    (offset,) = struct.unpack_from("<I", body, 4)
    (entries,) = struct.unpack_from("<H", body, offset)
    struct.pack_into("<I", body, offset + 2 + 12 * entries, offset)
    with pytest.raises(UnreadableImage, match="circle"):
        decode(bytes(body))


def test_a_description_in_an_instruments_own_letters_comes_back_in_them(grey16):
    said = "Pixelgröße 0.65 µm; Objektträger"
    for charset in ("latin-1", "utf-8"):
        sink = io.BytesIO()
        with tifffile.TiffWriter(sink) as file:
            file.write(grey16, description=said.encode(charset), metadata=None)
        image = decode(sink.getvalue())
        assert image.description == said
        with tifffile.TiffFile(io.BytesIO(encode(image, None, PROVENANCE))) as answer:
            written = answer.pages[0].tags[270]
            raw = answer.filehandle.read_array("u1", written.count, offset=written.valueoffset).tobytes()
        assert raw.startswith(said.encode(charset) + b"\nRefocus: ")


def test_letters_that_the_instruments_encoding_lacks_change_it_to_unicode(grey16):
    image = decode(tiff_bytes(grey16, description="Träger".encode("latin-1"), metadata=None))
    body = encode(image, None, Provenance("μοντέλο", "0" * 64))
    assert "Träger\nRefocus: model=μοντέλο".encode() in body


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_where_white_is_zero_light_is_restored_and_white_is_zero_again(grey16, dtype):
    stored = (grey16 // 300).astype(dtype)
    body = tiff_bytes(stored, photometric="miniswhite", metadata=None)
    image = decode(body)
    light = -stored if dtype == "float32" else np.iinfo(dtype).max + np.iinfo(dtype).min - stored.astype(int)
    np.testing.assert_array_equal(image.planes[0], light)
    with tifffile.TiffFile(io.BytesIO(encode(image, None, PROVENANCE))) as answer:
        assert answer.pages[0].photometric.name == "MINISWHITE"
        np.testing.assert_array_equal(answer.pages[0].asarray(), stored)
    if dtype == "uint8":
        np.testing.assert_array_equal(imagecodecs.png_decode(encode(image, "png")), light)


def test_opacity_is_not_turned_with_the_light(grey16):
    stored = np.stack([grey16, grey16 // 2], -1)
    body = tiff_bytes(stored, photometric="miniswhite", planarconfig="contig", extrasamples=["unassalpha"])
    image = decode(body)
    np.testing.assert_array_equal(image.planes[0], 65535 - grey16)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(encode(image))), stored)
