"""Whether the directories of a TIFF lie inside the file.

tifffile stops where the chain of pages leads out of the file and says so only in its log: a copy that broke off
would pass for a shorter stack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from refocus.errors import UnreadableImage
from refocus.wire.tiff_header import TYPE_BYTES


def check_chain(file: BinaryIO, length: int, name: str) -> None:
    """Follow the chain of directories to its end; of the first, check what its tags point to as well.

    Parameters
    ----------
    file : seekable binary file
    length : int
        Of the file, in bytes.
    name : str
        For messages.

    Raises
    ------
    UnreadableImage
        If a directory, or text that the first one refers to, lies beyond the end, or the chain is a circle.
    """
    file.seek(0)
    header = file.read(16)
    order = ">" if header[:2] == b"MM" else "<"
    (version,) = struct.unpack(f"{order}H", header[2:4])
    if version == 43:
        count_format, entry_format, offset_format, start_at = f"{order}Q", f"{order}HHQQ", f"{order}Q", 8
    else:
        count_format, entry_format, offset_format, start_at = f"{order}H", f"{order}HHII", f"{order}I", 4

    def at(position: int, size: int) -> bytes:
        file.seek(position)
        data = file.read(size)
        if len(data) < size:
            raise _truncated(name, position + size, length)
        return data

    entry_bytes, offset_bytes = struct.calcsize(entry_format), struct.calcsize(offset_format)
    (start,) = struct.unpack(offset_format, at(start_at, offset_bytes))
    seen: set[int] = set()
    while start:
        if start in seen:
            raise UnreadableImage(f"{name}: its pages follow each other in a circle; the file is damaged.")
        (count,) = struct.unpack(count_format, at(start, struct.calcsize(count_format)))
        first = start + struct.calcsize(count_format)
        directory = at(first, count * entry_bytes + offset_bytes)
        if not seen:
            needed = max(_ends(directory[: count * entry_bytes], entry_format, offset_bytes), default=0)
            if needed > length:
                raise _truncated(name, needed, length)
        seen.add(start)
        (start,) = struct.unpack(offset_format, directory[-offset_bytes:])


def _ends(entries: bytes, entry_format: str, inline_bytes: int) -> Iterator[int]:
    for _, kind, count, value in struct.iter_unpack(entry_format, entries):
        size = TYPE_BYTES.get(kind, 0) * count
        # A value that fits stands in the entry itself.
        if size > inline_bytes:
            yield value + size


def _truncated(name: str, needed: int, length: int) -> UnreadableImage:
    return UnreadableImage(
        f"{name} is truncated: its header promises {needed} bytes and the file has {length}. "
        "Copy it again from the microscope."
    )
