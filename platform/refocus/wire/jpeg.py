"""JPEG in: 8-bit grey or RGB. It loses detail, so answers are never JPEG."""

from __future__ import annotations

import struct

import imagecodecs
import numpy as np

from refocus.errors import UnreadableImage, UnsupportedImage
from refocus.wire.image import ImageLimits, WireImage


def decode_jpeg(body: bytes, limits: ImageLimits) -> WireImage:
    """Return the image of a JPEG body, grey or RGB."""
    height_px, width_px, components = jpeg_size(body)
    limits.check_pixels(height_px, width_px)
    limits.check_decoded(height_px * width_px * components)
    if components not in (1, 3):
        raise UnsupportedImage(f"The JPEG has {components} colour components; expected 1 (grey) or 3 (RGB).")
    if not body.rstrip(b"\0").endswith(b"\xff\xd9") and b"\xff\xd9" not in body[-4096:]:
        raise UnreadableImage("The JPEG ends before its end marker; it was truncated on the way.")
    pixels = imagecodecs.jpeg8_decode(body)
    if pixels.shape[:2] != (height_px, width_px):
        raise UnreadableImage(f"The JPEG claims {width_px} x {height_px} pixels and decodes to {pixels.shape}.")
    return WireImage(np.ascontiguousarray(pixels)[None], container="jpeg")


def jpeg_size(body: bytes) -> tuple[int, int, int]:
    """Return (rows, columns, components) from the frame header of a JPEG stream."""
    position = 2
    while position + 4 <= len(body):
        if body[position] != 0xFF:
            break
        marker = body[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
            continue
        (length,) = struct.unpack_from(">H", body, position + 2)
        # Frame headers are C0 to CF, save the tables C4 (Huffman), C8 (reserved) and CC (arithmetic).
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if position + 10 > len(body):
                break
            precision, height_px, width_px, components = struct.unpack_from(">BHHB", body, position + 4)
            if precision != 8:
                raise UnsupportedImage(f"The JPEG has {precision} bit; expected 8. Send TIFF or PNG instead.")
            if 0 in (height_px, width_px):
                raise UnreadableImage(f"The JPEG claims {width_px} x {height_px} pixels.")
            return height_px, width_px, components
        if marker == 0xDA or length < 2:
            break
        position += 2 + length
    raise UnreadableImage("The JPEG has no frame header; it is broken or truncated.")
