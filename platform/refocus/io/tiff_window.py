"""A window of one TIFF page: only the rows, strips or tiles that it touches are fetched and decoded."""

from __future__ import annotations

import itertools
import math
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile

from refocus.errors import UnreadableImage


def read_rows(
    file: BinaryIO, offset: int, shape: tuple[int, ...], dtype: np.dtype, rows: slice, name: str
) -> npt.NDArray[Any]:
    """Read whole rows of a plane (Y, X) or (Y, X, S) that lies uncompressed and in one piece from byte `offset`.

    Raises
    ------
    UnreadableImage
        If the file ends before.
    """
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    size = (rows.stop - rows.start) * row_bytes
    file.seek(offset + rows.start * row_bytes)
    data = file.read(size)
    if len(data) != size:
        raise UnreadableImage(f"{name}: rows from {rows.start} have {len(data)} bytes of {size}; truncated.")
    return np.frombuffer(data, dtype).reshape(-1, *shape[1:])


def read_segments(page: tifffile.TiffPage | tifffile.TiffFrame, rows: slice, columns: slice) -> npt.NDArray[Any]:
    """Decode the strips or tiles of a page (YX or YXS) that a window touches; those left out of the file are zero."""
    keyframe = page.keyframe
    assert keyframe is not None
    segment_height, segment_width = keyframe.chunks[:2]
    down = range(rows.start // segment_height, -(-rows.stop // segment_height))
    along = range(columns.start // segment_width, -(-columns.stop // segment_width))
    indices = [row * keyframe.chunked[1] + column for row, column in itertools.product(down, along)]
    height, width = rows.stop - rows.start, columns.stop - columns.start
    pixels = np.zeros((height, width, keyframe.samplesperpixel), keyframe.dtype)
    found = page.parent.filehandle.read_segments(
        [page.dataoffsets[index] for index in indices],
        [page.databytecounts[index] for index in indices],
        indices=indices,
    )
    for data, index in found:
        decoded, (_, _, y_px, x_px, _), _ = keyframe.decode(
            data, index, jpegtables=page.jpegtables, jpegheader=keyframe.jpegheader
        )
        if decoded is not None:
            _paste(decoded[0], y_px - rows.start, x_px - columns.start, pixels)
    return pixels if "S" in keyframe.axes else pixels[..., 0]


def _paste(segment: npt.NDArray[Any], y_px: int, x_px: int, into: npt.NDArray[Any]) -> None:
    top, left = max(y_px, 0), max(x_px, 0)
    bottom, right = min(y_px + segment.shape[0], into.shape[0]), min(x_px + segment.shape[1], into.shape[1])
    into[top:bottom, left:right] = segment[top - y_px : bottom - y_px, left - x_px : right - x_px]
