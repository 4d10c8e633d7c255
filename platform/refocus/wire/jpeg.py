"""JPEG in: 8-bit grey or RGB. It loses detail, so answers are never JPEG; what it says of itself goes with them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np

from refocus.errors import UnreadableImage, UnsupportedImage
from refocus.wire.image import ImageLimits, Tag, WireImage
from refocus.wire.png import pixel_size_from_phys

_APP0, _APP1, _APP2 = 0xE0, 0xE1, 0xE2
_EXIF, _ICC = b"Exif\0\0", b"ICC_PROFILE\0"
_ORIENTATION, _ICC_TAG = 274, 34675


def decode_jpeg(body: bytes, limits: ImageLimits) -> WireImage:
    """Return the image of a JPEG body, grey or RGB, with what a PNG or TIFF can say of it in its own words.

    EXIF (which way is up), colour profile and density become chunks of a PNG; a TIFF takes the first two as tags.
    """
    height_px, width_px, components = jpeg_size(body)
    limits.check_pixels(height_px, width_px)
    limits.check_decoded(height_px * width_px * components)
    if components not in (1, 3):
        raise UnsupportedImage(f"The JPEG has {components} colour components; expected 1 (grey) or 3 (RGB).")
    if not body.rstrip(b"\0").endswith(b"\xff\xd9") and b"\xff\xd9" not in body[-4096:]:
        raise UnreadableImage("The JPEG ends before its end marker; it was truncated.")
    pixels = imagecodecs.jpeg8_decode(body)
    if pixels.shape[:2] != (height_px, width_px):
        raise UnreadableImage(f"The JPEG claims {width_px} x {height_px} pixels and decodes to {pixels.shape}.")
    said = [(marker, body[start:end]) for marker, start, end in _segments(body) if _APP0 <= marker <= _APP2]
    exif, profile = _exif(said), _profile(said, components)
    chunks = [(b"pHYs", density) for density in _densities(said)[:1]]
    tags = []
    if profile:
        chunks.append((b"iCCP", b"icc\0\0" + zlib.compress(profile)))
        tags.append(Tag(_ICC_TAG, 7, len(profile), profile))
    if exif:
        chunks.append((b"eXIf", exif))
        tags += [Tag(_ORIENTATION, 3, 1, struct.pack("<H", number)) for number in _orientations(exif)[:1]]
    return WireImage(
        np.ascontiguousarray(pixels)[None],
        container="jpeg",
        pixel_size_um=pixel_size_from_phys(tuple(chunks)),
        tags=tuple(tags),
        chunks=tuple(chunks),
    )


def _exif(said: list[tuple[int, bytes]]) -> bytes:
    found = (data[len(_EXIF) :] for marker, data in said if marker == _APP1 and data.startswith(_EXIF))
    return next((exif for exif in found if exif[:4] in (b"II*\0", b"MM\0*")), b"")


def _orientations(exif: bytes) -> list[int]:
    """Return what the first directory (TIFF 6.0, section 2) says of the side that is up: 1 to 8."""
    order = "<" if exif[:2] == b"II" else ">"
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, directory)
        fields = [struct.unpack_from(order + "HHIH", exif, directory + 2 + 12 * each) for each in range(entries)]
    except struct.error:
        return []
    return [value for code, kind, _, value in fields if (code, kind) == (_ORIENTATION, 3) and 1 <= value <= 8]


def _profile(said: list[tuple[int, bytes]], components: int) -> bytes:
    """Return the colour profile, whose pieces are numbered (ICC.1, annex B.4); none where it is for other colours."""
    pieces = sorted(data[len(_ICC) :] for marker, data in said if marker == _APP2 and data.startswith(_ICC))
    profile = b"".join(piece[2:] for piece in pieces)
    return profile if profile[16:20] == (b"RGB " if components == 3 else b"GRAY") else b""


def _densities(said: list[tuple[int, bytes]]) -> list[bytes]:
    """Return what JFIF says of dots an inch or a centimetre, as a PNG's pixels a metre."""
    found = []
    for marker, data in said:
        if marker == _APP0 and data.startswith(b"JFIF\0") and len(data) >= 12:
            unit, across, down = struct.unpack_from(">BHH", data, 7)
            per_metre = {1: 1 / 0.0254, 2: 100.0}.get(unit)
            if per_metre and across and down:
                found.append(struct.pack(">IIB", round(across * per_metre), round(down * per_metre), 1))
    return found


def jpeg_size(body: bytes | memoryview) -> tuple[int, int, int]:
    """Return (rows, columns, components) from the frame header of a JPEG stream."""
    for marker, start, _ in _segments(body):
        # Frame headers are C0 to CF, save the tables C4 (Huffman), C8 (reserved) and CC (arithmetic).
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if start + 6 > len(body):
                break
            precision, height_px, width_px, components = struct.unpack_from(">BHHB", body, start)
            if precision != 8:
                raise UnsupportedImage(f"The JPEG has {precision} bit; expected 8. Send TIFF or PNG instead.")
            if 0 in (height_px, width_px):
                raise UnreadableImage(f"The JPEG claims {width_px} x {height_px} pixels.")
            return height_px, width_px, components
    raise UnreadableImage("The JPEG has no frame header; it is broken or truncated.")


def _segments(body: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """Walk (marker, where its data begin, where they end) up to the first scan."""
    position = 2
    while position + 4 <= len(body) and body[position] == 0xFF:
        marker = body[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", body, position + 2)
        if marker == 0xDA or length < 2:
            return
        yield marker, position + 4, position + 2 + length
        position += 2 + length
