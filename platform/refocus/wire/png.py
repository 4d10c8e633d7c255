"""PNG in and out: verified before libpng sees it, chunks of metadata carried through."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass

import imagecodecs
import numpy as np

from refocus.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from refocus.wire.image import ImageLimits, Provenance, WireImage

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CRITICAL = (b"IHDR", b"PLTE", b"tRNS")
# Bit depths by colour type: grey, RGB, palette, grey with opacity, RGB with opacity.
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_LONGEST_SIDE_PX = 1_000_000
_PNG_MOST_CHUNKS = 2**18
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# Facts about the image as a whole that stay true when its pixels are restored.
_PNG_KEPT = (b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"tIME", b"eXIf")
# Run lengths of differences: a fifth of the time of the defaults, files a little larger.
_PNG_FAST = {"level": 1, "strategy": 3, "filter": 16}


def decode_png(body: bytes, limits: ImageLimits) -> WireImage:
    """Return the image of a PNG body; palettes become RGB, depths of 2 and 4 bit become 8 bit.

    Notes
    -----
    imagecodecs 2026.3.6 is not memory-safe where libpng meets an error: it drops a reference to None each time
    and reads freed memory for the message. So every checksum, length and the whole zlib stream are verified
    here first, and libpng is handed a file of the critical chunks alone, which it has no reason to refuse.
    """
    chunks = list(_chunks(body))
    critical = {name: data for name, data in chunks if name in _PNG_CRITICAL}
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise UnreadableImage("The PNG does not begin with its header chunk (IHDR); it is broken.")
    header = _Header(*struct.unpack(">IIBBBBB", chunks[0][1]))
    if chunks[-1][0] != b"IEND":
        raise UnreadableImage("The PNG ends before its last chunk (IEND); it was truncated.")
    header.check(limits, critical)
    _check_scanlines(header, [data for name, data in chunks if name == b"IDAT"])
    # Transparency by colour (tRNS) becomes a channel, so it is part of what is decoded.
    needed = [(name, bytes(critical[name])) for name in _PNG_CRITICAL if name in critical]
    needed += [(name, bytes(data)) for name, data in chunks if name == b"IDAT"]
    sound = _PNG_SIGNATURE + b"".join(_chunk(name, data) for name, data in needed) + _chunk(b"IEND", b"")
    pixels = np.atleast_3d(imagecodecs.png_decode(sound))
    samples = pixels.shape[2]
    color = pixels[:, :, : samples - 1] if samples in (2, 4) else pixels
    kept = tuple((name, bytes(data)) for name, data in chunks if name in _PNG_KEPT)
    return WireImage(
        np.ascontiguousarray(color)[None] if color.shape[2] == 3 else np.ascontiguousarray(color[None, :, :, 0]),
        container="png",
        pixel_size_um=pixel_size_from_phys(kept),
        alpha=np.ascontiguousarray(pixels[None, :, :, -1]) if samples in (2, 4) else None,
        chunks=kept,
    )


def _chunks(body: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view = memoryview(body)
    position = len(_PNG_SIGNATURE)
    found = 0
    while position + 12 <= len(body):
        # An empty chunk takes twelve bytes in the file and hundreds in memory.
        if (found := found + 1) > _PNG_MOST_CHUNKS:
            raise ImageTooLarge(f"The PNG is cut into more than {_PNG_MOST_CHUNKS} chunks; write it again.")
        length, name = struct.unpack_from(">I4s", body, position)
        end = position + 12 + length
        if end > len(body):
            raise UnreadableImage(
                f"The PNG's {name!r} chunk claims {length} bytes and the file ends after "
                f"{len(body) - position - 8}; it was truncated."
            )
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise UnreadableImage(f"The checksum of the PNG's {name!r} chunk is wrong; it was damaged.")
        yield name, view[position + 8 : end - 4]
        if name == b"IEND":
            return
        position = end


@dataclass(frozen=True, slots=True)
class _Header:
    """The header chunk (PNG specification, section 11.2.1)."""

    width_px: int
    height_px: int
    depth: int
    color: int
    compression: int
    filtering: int
    interlace: int

    def check(self, limits: ImageLimits, critical: Mapping[bytes, Sized]) -> None:
        if (
            self.depth not in _PNG_DEPTHS.get(self.color, ())
            or 0 in (self.width_px, self.height_px)
            or (self.compression, self.filtering) != (0, 0)
            or self.interlace > 1
        ):
            raise UnreadableImage(f"The PNG's header claims {self}; no PNG is so.")
        if self.depth == 1:
            raise UnsupportedImage(
                "The PNG has two levels (1 bit); there is no blur in it to undo. Send the image that it was made from."
            )
        limits.check_pixels(self.height_px, self.width_px)
        if max(self.width_px, self.height_px) > _PNG_LONGEST_SIDE_PX:
            raise ImageTooLarge(
                f"The PNG claims {self.width_px} x {self.height_px} pixels; sides of up to {_PNG_LONGEST_SIDE_PX} "
                "are read."
            )
        bytes_each = 2 if self.depth == 16 else 1
        limits.check_decoded(self.width_px * self.height_px * (self.channels + (b"tRNS" in critical)) * bytes_each)
        palette, transparency = critical.get(b"PLTE"), critical.get(b"tRNS")
        entries = 0 if palette is None else len(palette) // 3
        if palette is not None and (len(palette) % 3 or not 1 <= entries <= 256 or self.color in (0, 4)):
            raise UnreadableImage(f"The PNG's palette has {len(palette)} bytes; it is damaged.")
        if self.color == 3 and not 1 <= entries <= 2**self.depth:
            raise UnreadableImage(f"The PNG needs a palette of 1 to {2**self.depth} colours and has {entries}.")
        if transparency is not None:
            allowed = {0: range(2, 3), 2: range(6, 7), 3: range(1, entries + 1)}.get(self.color, range(0))
            if len(transparency) not in allowed:
                raise UnreadableImage(f"The PNG's transparency chunk has {len(transparency)} bytes; it is damaged.")

    @property
    def channels(self) -> int:
        return {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[self.color]

    def passes(self) -> list[tuple[int, int]]:
        """Rows and bytes a row of each pass: one, or the seven of Adam7 (section 8.2)."""
        bits = self.depth * (1 if self.color == 3 else self.channels)
        grids = _ADAM7 if self.interlace else ((0, 0, 1, 1),)
        shapes = []
        for x, y, step_x, step_y in grids:
            columns = -(-max(self.width_px - x, 0) // step_x)
            rows = -(-max(self.height_px - y, 0) // step_y)
            if rows and columns:
                shapes.append((rows, 1 + (columns * bits + 7) // 8))
        return shapes


def _check_scanlines(header: _Header, pieces: list[memoryview]) -> None:
    passes = header.passes()
    expected = sum(rows * row_bytes for rows, row_bytes in passes)
    inflater = zlib.decompressobj()
    scanlines = bytearray()
    for piece in pieces:
        # One byte more than expected shows a stream that goes on; a bomb stops there.
        scanlines += inflater.decompress(piece, expected + 1 - len(scanlines))
        if len(scanlines) > expected or inflater.unconsumed_tail:
            break
    if len(scanlines) != expected or not inflater.eof or inflater.unused_data:
        raise UnreadableImage(
            f"The PNG's size needs {expected} bytes of scan lines and its data hold "
            f"{'more' if len(scanlines) > expected else len(scanlines)}; it is damaged."
        )
    position = 0
    for rows, row_bytes in passes:
        filters = np.frombuffer(scanlines, np.uint8, rows * row_bytes, position)[::row_bytes]
        if int(filters.max()) > 4:
            raise UnreadableImage(f"The PNG uses filter {int(filters.max())}; there are 0 to 4. It is damaged.")
        position += rows * row_bytes


def pixel_size_from_phys(chunks: tuple[tuple[bytes, bytes], ...]) -> float | None:
    """Return the pixel size in um that a pHYs chunk says, None where it speaks of a screen."""
    for name, data in chunks:
        if name == b"pHYs" and len(data) == 9:
            per_metre, _, unit = struct.unpack(">IIB", data)
            # Screens' 72 to 300 dots an inch are no scale of a specimen: below 25 um a pixel it may be.
            if unit == 1 and per_metre > 40_000:
                return 1e6 / float(per_metre)
    return None


def png_holds(dtype: np.dtype, planes: int) -> bool:
    """Whether a PNG holds so many planes of such pixels: one, of 8 or 16 bit, unsigned."""
    return planes == 1 and dtype in (np.uint8, np.uint16)


def encode_png(image: WireImage, provenance: Provenance | None) -> bytes:
    """Return `image` as a PNG with the chunks it came with and one text chunk of provenance."""
    if not png_holds(image.planes.dtype, len(image.planes)):
        raise UnsupportedImage(
            f"A PNG holds one plane of 8 or 16 bit, unsigned; the image has {image.planes.shape[0]} planes of "
            f"{image.planes.dtype}. Ask for image/tiff."
        )
    pixels = image.planes[0]
    if image.alpha is not None:
        color = pixels if pixels.ndim == 3 else pixels[:, :, None]
        pixels = np.concatenate([color, image.alpha[0][:, :, None]], axis=2)
    encoded = bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), **_PNG_FAST))
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
    extra = b"".join(_chunk(name, data) for name, data in chunks)
    return encoded[:header_end] + extra + encoded[header_end:]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
