"""What a TIFF claims, read from its directories alone and held against the bytes that are there.

Readers trust these claims: they allocate what width and height say, and fill with zeros what a
truncated file no longer holds. So every claim is checked here first; nothing but the directories is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from refocus.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from refocus.wire.image import ImageLimits, Tag
from refocus.wire.jpeg import jpeg_size

#: Compressions that are decoded, to the name that writes them back (None: written with deflate).
COMPRESSIONS: dict[int, str | None] = {
    1: "none", 5: "lzw", 7: None, 8: "zlib", 32773: "packbits", 32946: "zlib", 34925: None, 50000: "zstd",
}  # fmt: skip
#: Names of some that are not, for people to find in what wrote the file.
_NOT_DECODED = {
    2: "CCITT", 3: "CCITT fax 3", 4: "CCITT fax 4", 6: "JPEG of TIFF 5", 22610: "JPEG XR", 33003: "JPEG 2000",
    33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34892: "DNG's lossy JPEG", 34934: "JPEG XR", 50001: "WebP",
    50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_JPEG = 7
#: Of one value of each type of tag.
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGER_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_MAX_ENTRIES = 1024
_MAX_SAMPLES = 4
_MAX_SEGMENTS = 2**18
_MAX_TAG_BYTES = 16 * 2**20
_MAX_REDUCTIONS = 16
_MIN_TILE_PX = 16

# Tags that say how the pixels lie in the file; the writer makes its own.
_STRUCTURE = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 266, 270, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291}
    | {292, 293, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 342, 347}
    | {512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 34665, 34853, 40965}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Directory:
    """One image file directory, its claims checked.

    Parameters
    ----------
    index : int
        Position in the chain of directories.
    height_px, width_px, samples, bits : int
    sample_format : int
        1 unsigned, 2 signed, 3 float.
    compression, predictor, photometric, planar : int
    extra_samples : tuple of int
        Kinds of the samples beyond grey or RGB: 1 and 2 are opacity.
    is_page : bool
        False for thumbnails and masks, which lie in the same chain.
    description : memoryview
    starts_at : int or None
        Where the pixels begin, if they lie in one piece, uncompressed.
    tile_px : (rows, columns) or None
        Of the tiles that it is cut into; None where those are strips.
    reductions : tuple of int
        By how much the smaller images of its pyramid are reduced, where it has one (SubIFDs).
    tags : tuple of Tag
        What is no structure, as raw bytes in the file's byte order.
    """

    index: int
    height_px: int
    width_px: int
    samples: int
    bits: int
    sample_format: int
    compression: int
    predictor: int
    photometric: int
    planar: int
    extra_samples: tuple[int, ...]
    is_page: bool
    description: memoryview
    tags: tuple[Tag, ...]
    starts_at: int | None = None
    tile_px: tuple[int, int] | None = None
    reductions: tuple[int, ...] = ()

    @property
    def decoded_bytes(self) -> int:
        """Bytes of this plane's pixels."""
        return self.height_px * self.width_px * self.samples * ((self.bits + 7) // 8)


@dataclass(frozen=True, slots=True)
class _Entry:
    code: int
    dtype: int
    count: int
    # No copy: any number of entries may point to the same bytes, each to all of a file.
    data: memoryview


class TiffHeader:
    """The directories of a TIFF body.

    Parameters
    ----------
    body : bytes
    limits : ImageLimits

    Attributes
    ----------
    byteorder : {'<', '>'}
    is_big : bool
        Whether it is a BigTIFF.
    pages : tuple of Directory
        The full-size images, in order.

    Raises
    ------
    UnreadableImage, UnsupportedImage, ImageTooLarge
        If a claim does not hold, is of a kind not handled, or is over a limit.
    """

    def __init__(self, body: bytes, limits: ImageLimits) -> None:
        self._body = memoryview(body)
        self._spare_bytes = _MAX_TAG_BYTES
        self._limits = limits
        self.byteorder = "<" if body[:2] == b"II" else ">"
        self.is_big = body[2:4] in (b"+\0", b"\0+")
        pages = []
        decoded = segments = 0
        for index, offset in enumerate(self._offsets()):
            directory, count = self._directory(index, offset)
            if directory.is_page:
                pages.append(directory)
                decoded += directory.decoded_bytes
                segments += count
                limits.check_pages(len(pages))
                limits.check_decoded(decoded)
                if segments > _MAX_SEGMENTS:
                    raise ImageTooLarge(
                        f"The TIFF is cut into more than {_MAX_SEGMENTS} strips or tiles; write it with larger ones."
                    )
        if not pages:
            raise UnreadableImage("The TIFF holds no full-size image.")
        self.pages = tuple(pages)

    def _unpack(self, fmt: str, position: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(self.byteorder + fmt, self._body, position)
        except struct.error:
            raise UnreadableImage(
                f"The TIFF points to byte {position} and ends at byte {len(self._body)}; it was truncated."
            ) from None

    def _offsets(self) -> Iterator[int]:
        if self.is_big:
            size, zero = self._unpack("HH", 4)
            if (size, zero) != (8, 0):
                raise UnreadableImage(f"The BigTIFF header claims {size}-byte offsets; expected 8.")
        (offset,) = self._unpack("Q", 8) if self.is_big else self._unpack("I", 4)
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise UnreadableImage(f"The TIFF's directories point in a circle (byte {offset}).")
            seen.add(offset)
            # Thumbnails and masks lie in the same chain.
            self._limits.check_pages(len(seen) // 4)
            yield offset
            (entries,) = self._unpack("Q" if self.is_big else "H", offset)
            if self.is_big:
                (offset,) = self._unpack("Q", offset + 8 + 20 * entries)
            else:
                (offset,) = self._unpack("I", offset + 2 + 12 * entries)

    def _entries(self, offset: int) -> dict[int, _Entry]:
        (count,) = self._unpack("Q" if self.is_big else "H", offset)
        if not 0 < count <= _MAX_ENTRIES:
            raise UnreadableImage(f"A TIFF directory claims {count} entries; expected 1 to {_MAX_ENTRIES}.")
        first, step, inline = (offset + 8, 20, 8) if self.is_big else (offset + 2, 12, 4)
        entries = {}
        for position in range(first, first + step * count, step):
            code, dtype, values = self._unpack("HHQ" if self.is_big else "HHI", position)
            size = TYPE_BYTES.get(dtype, 0) * values
            start = position + step - inline
            if size > inline:
                (start,) = self._unpack("Q" if self.is_big else "I", start)
            if not size or start + size > len(self._body):
                if code in _STRUCTURE:
                    raise UnreadableImage(
                        f"TIFF tag {code} claims {size} bytes at byte {start}; the file ends at byte "
                        f"{len(self._body)}. It was truncated or damaged."
                    )
                continue
            entries[code] = _Entry(code, dtype, values, self._body[start : start + size])
        return entries

    def _integers(self, entry: _Entry | None, default: tuple[int, ...], *, most: int) -> np.ndarray:
        if entry is None:
            return np.array(default, np.uint64)
        kind = _INTEGER_TYPES.get(entry.dtype)
        if kind is None:
            raise UnreadableImage(f"TIFF tag {entry.code} has type {entry.dtype}; expected whole numbers.")
        return np.frombuffer(entry.data, self.byteorder + kind)[:most].astype(np.uint64)

    def _directory(self, index: int, offset: int) -> tuple[Directory, int]:
        entries = self._entries(offset)

        def number(code: int, default: int) -> int:
            return int(self._integers(entries.get(code), (default,), most=1)[0])

        height_px, width_px = number(257, 0), number(256, 0)
        if not height_px or not width_px:
            raise UnreadableImage(f"Page {index} of the TIFF claims {width_px} x {height_px} pixels.")
        bits = self._integers(entries.get(258), (1,), most=_MAX_SAMPLES)
        formats = self._integers(entries.get(339), (1,), most=_MAX_SAMPLES)
        subfile = number(254, 0)
        directory = Directory(
            index=index,
            height_px=height_px,
            width_px=width_px,
            samples=number(277, 1),
            bits=int(bits[0]),
            sample_format=int(formats[0]),
            compression=number(259, 1),
            predictor=number(317, 1),
            photometric=number(262, 1),
            planar=number(284, 1),
            extra_samples=tuple(int(kind) for kind in self._integers(entries.get(338), (), most=_MAX_SAMPLES)),
            is_page=not subfile & 0b101,
            description=entries[270].data if 270 in entries else memoryview(b""),
            tags=tuple(self._tags(entries)),
        )
        if not directory.is_page:
            return directory, 0
        self._limits.check_pixels(height_px, width_px)
        self._limits.check_decoded(directory.decoded_bytes)
        if len(set(bits.tolist())) > 1 or len(set(formats.tolist())) > 1:
            raise UnsupportedImage(f"Page {index} of the TIFF mixes sample types; expected one type for all.")
        if not 1 <= directory.samples <= _MAX_SAMPLES:
            raise UnsupportedImage(
                f"Page {index} of the TIFF has {directory.samples} samples a pixel; expected grey or RGB, "
                "with or without opacity. Send channels as pages."
            )
        if directory.compression not in COMPRESSIONS:
            raise UnsupportedImage(
                f"Page {index} of the TIFF is compressed by {_named(directory.compression)}; expected none, LZW, "
                "deflate, PackBits, LZMA, Zstandard or JPEG."
            )
        segments, starts_at = self._check_segments(directory, entries)
        tile_px = (number(323, 0), number(322, 0)) if 324 in entries else None
        reductions = self._reductions(width_px, entries.get(330))
        return replace(directory, starts_at=starts_at, tile_px=tile_px, reductions=reductions), segments

    def _reductions(self, width_px: int, smaller: _Entry | None) -> tuple[int, ...]:
        """Of the directories of smaller images; what lies there is not read, and made anew from what comes back."""
        found = []
        for offset in self._integers(smaller, (), most=_MAX_REDUCTIONS).tolist():
            try:
                entries = self._entries(offset)
            except UnreadableImage:
                continue
            subfile, width = (int(self._integers(entries.get(code), (0,), most=1)[0]) for code in (254, 256))
            if subfile & 1 and 0 < width < width_px:
                found.append(round(width_px / width))
        return tuple(sorted(set(found) - {1}))

    def _tags(self, entries: dict[int, _Entry]) -> Iterator[Tag]:
        """What goes back as it came, as long as all of it together is not too much."""
        for entry in entries.values():
            if entry.code not in _STRUCTURE:
                self._spare_bytes -= len(entry.data)
                if self._spare_bytes >= 0:
                    yield Tag(entry.code, entry.dtype, entry.count, bytes(entry.data))

    def _check_segments(self, page: Directory, entries: dict[int, _Entry]) -> tuple[int, int | None]:
        def number(code: int, default: int) -> int:
            return int(self._integers(entries.get(code), (default,), most=1)[0])

        tiled = 324 in entries
        if tiled:
            rows, columns = number(323, 0), number(322, 0)
            if rows < _MIN_TILE_PX or columns < _MIN_TILE_PX:
                raise UnreadableImage(f"Page {page.index} of the TIFF claims tiles of {columns} x {rows} pixels.")
            # A decoder allocates whole tiles, however small the image is.
            self._limits.check_pixels(rows, columns)
        else:
            rows, columns = min(number(278, page.height_px) or page.height_px, page.height_px), page.width_px
        expected = -(-page.height_px // rows) * -(-page.width_px // columns)
        depth = 1 if page.planar == 1 else page.samples
        expected *= depth
        offsets = self._integers(entries.get(324 if tiled else 273), (), most=expected)
        counts = self._integers(entries.get(325 if tiled else 279), (), most=expected)
        if len(counts) == 0 and len(offsets) == 1 and page.compression == 1:
            counts = np.array([page.decoded_bytes], np.uint64)
        if len(offsets) < expected or len(counts) < expected:
            raise UnreadableImage(
                f"Page {page.index} of the TIFF lists {len(offsets)} pieces of pixel data; "
                f"its size needs {expected}. It is damaged."
            )
        end = offsets + counts
        if bool((end > len(self._body)).any()) or bool((end < offsets).any()) or bool((counts == 0).any()):
            raise UnreadableImage(
                f"Page {page.index} of the TIFF keeps pixels up to byte {int(end.max())} and the file ends at byte "
                f"{len(self._body)}; it was truncated."
            )
        # Pieces may share their bytes, and each of them is read and decoded.
        self._limits.check_decoded(int(counts.sum()))
        if page.compression == 1 and not tiled and int(counts.sum()) * 8 < page.decoded_bytes // max(page.bits // 8, 1):
            raise UnreadableImage(f"Page {page.index} of the TIFF holds fewer bytes than its pixels need.")
        if page.compression == _JPEG:
            for start, size in zip(offsets.tolist(), counts.tolist(), strict=True):
                tall, wide, _ = jpeg_size(self._body[start : start + size])
                if tall > rows + 15 or wide > columns + 15:
                    raise UnreadableImage(
                        f"Page {page.index} of the TIFF holds a JPEG of {wide} x {tall} pixels in a place of "
                        f"{columns} x {rows}."
                    )
        if page.compression == 1 and not tiled and page.planar == 1 and page.predictor == 1:
            follows = bool((offsets[1:] == end[:-1]).all()) and int(end[-1] - offsets[0]) >= page.decoded_bytes
            return expected, int(offsets[0]) if follows else None
        return expected, None


def _named(compression: int) -> str:
    name = _NOT_DECODED.get(compression)
    return f"method {compression}" if name is None else f"{name} (method {compression})"
