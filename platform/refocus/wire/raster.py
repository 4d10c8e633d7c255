"""PNG and JPEG: limits read from the headers, chunks of metadata carried through."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np

from refocus.errors import UnreadableImage, UnsupportedImage
from refocus.wire.image import ImageLimits, Provenance, WireImage

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
# Facts about the image as a whole that stay true when its pixels are restored.
_PNG_KEPT = (b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"tIME", b"eXIf")
_PNG_LEVEL = 1


def decode_png(body: bytes, limits: ImageLimits) -> WireImage:
    """Return the image of a PNG body; palettes become RGB, depths below 8 bit become 8 bit."""
    chunks = list(_png_chunks(body))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise UnreadableImage("The PNG does not begin with its header chunk (IHDR); it is broken.")
    width_px, height_px, depth, color, *_ = struct.unpack(">IIBBBBB", chunks[0][1])
    names = [name for name, _ in chunks]
    if names[-1] != b"IEND" or b"IDAT" not in names:
        raise UnreadableImage("The PNG ends before its last chunk (IEND); it was truncated on the way.")
    if color not in _PNG_CHANNELS or depth not in (1, 2, 4, 8, 16) or 0 in (width_px, height_px):
        raise UnreadableImage(
            f"The PNG claims colour type {color}, {depth} bit, {width_px} x {height_px}; no PNG is so."
        )
    limits.check_pixels(height_px, width_px)
    # Transparency by colour (tRNS) adds a channel.
    channels = _PNG_CHANNELS[color] + (1 if b"tRNS" in names else 0)
    limits.check_decoded(width_px * height_px * channels * (2 if depth == 16 else 1))
    pixels = imagecodecs.png_decode(body)
    kept = tuple((name, data) for name, data in chunks if name in _PNG_KEPT)
    return _from_raster(pixels, "png", _pixel_size_from_phys(kept), kept)


def _from_raster(
    pixels: np.ndarray, container: str, pixel_size_um: float | None, chunks: tuple[tuple[bytes, bytes], ...]
) -> WireImage:
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    samples = pixels.shape[2]
    color, alpha = (pixels[:, :, :-1], pixels[:, :, -1][None]) if samples in (2, 4) else (pixels, None)
    planes = color[None] if color.shape[2] == 3 else color[None, :, :, 0]
    return WireImage(
        np.ascontiguousarray(planes),
        container="png" if container == "png" else "jpeg",
        pixel_size_um=pixel_size_um,
        alpha=None if alpha is None else np.ascontiguousarray(alpha),
        chunks=chunks,
    )


def _png_chunks(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(body):
        length, name = struct.unpack_from(">I4s", body, position)
        end = position + 12 + length
        if end > len(body):
            raise UnreadableImage(
                f"The PNG's {name!r} chunk claims {length} bytes and the body ends after "
                f"{len(body) - position - 8}; it was truncated on the way."
            )
        # Pixel data is checked by the decoder; a copy of it here would double the memory.
        yield name, b"" if name == b"IDAT" else body[position + 8 : end - 4]
        if name == b"IEND":
            return
        position = end


def _pixel_size_from_phys(chunks: tuple[tuple[bytes, bytes], ...]) -> float | None:
    for name, data in chunks:
        if name == b"pHYs" and len(data) == 9:
            per_metre, _, unit = struct.unpack(">IIB", data)
            # Screens' 72 to 300 dots an inch are no scale of a specimen: below 25 um a pixel it may be.
            if unit == 1 and per_metre > 40_000:
                return 1e6 / float(per_metre)
    return None


def encode_png(image: WireImage, provenance: Provenance | None) -> bytes:
    """Return `image` as a PNG with the chunks it came with and one text chunk of provenance."""
    if image.planes.shape[0] != 1 or image.planes.dtype == np.float32:
        raise UnsupportedImage(
            f"A PNG holds one plane of 8 or 16 bit; the image has {image.planes.shape[0]} planes of "
            f"{image.planes.dtype}. Ask for image/tiff."
        )
    pixels = image.planes[0]
    if image.alpha is not None:
        color = pixels if pixels.ndim == 3 else pixels[:, :, None]
        pixels = np.concatenate([color, image.alpha[0][:, :, None]], axis=2)
    encoded = bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=_PNG_LEVEL))
    chunks = [(name, data) for name, data in image.chunks if name in _PNG_KEPT]
    if image.pixel_size_um and not any(name == b"pHYs" for name, _ in chunks):
        per_metre = round(1e6 / image.pixel_size_um)
        chunks.append((b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1)))
    if image.description:
        chunks.append((b"iTXt", b"Description\0\0\0\0\0" + image.description.encode()))
    if provenance is not None:
        text = "; ".join(f"{key}={value}" for key, value in provenance.items().items())
        chunks.append((b"iTXt", b"Refocus\0\0\0\0\0" + text.encode()))
    header_end = len(_PNG_SIGNATURE) + 25
    extra = b"".join(_png_chunk(name, data) for name, data in chunks)
    return encoded[:header_end] + extra + encoded[header_end:]


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


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
    return _from_raster(pixels, "jpeg", None, ())


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
