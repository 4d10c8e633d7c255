"""Rectangles of an image, and tiles that cover it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of an image, in pixels."""

    y_px: int
    x_px: int
    height_px: int
    width_px: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an array with."""
        return slice(self.y_px, self.y_px + self.height_px), slice(self.x_px, self.x_px + self.width_px)

    def within(self, other: Window) -> Window:
        """Return the same rectangle, counted from the corner of `other`."""
        return Window(self.y_px - other.y_px, self.x_px - other.x_px, self.height_px, self.width_px)

    @property
    def size_px(self) -> int:
        """How many pixels it holds."""
        return self.height_px * self.width_px


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles that cover an image without leaving a rim, in rows and columns.

    The last row and column are moved inwards, so they overlap their neighbours instead of being smaller; an image
    smaller than a tile is one tile.

    Parameters
    ----------
    tops_px, lefts_px : tuple of int
        Where the rows and columns of tiles begin.
    height_px, width_px : int
        Of every tile.
    """

    tops_px: tuple[int, ...]
    lefts_px: tuple[int, ...]
    height_px: int
    width_px: int

    @classmethod
    def over(cls, height_px: int, width_px: int, tile_px: int) -> TileGrid:
        """Cover an image with tiles of `tile_px`."""
        height, width = min(tile_px, height_px), min(tile_px, width_px)
        return cls(tuple(_starts(height_px, height)), tuple(_starts(width_px, width)), height, width)

    def window(self, row: int, column: int) -> Window:
        """Return one tile's place."""
        return Window(self.tops_px[row], self.lefts_px[column], self.height_px, self.width_px)

    def windows(self) -> Iterator[Window]:
        """Yield every tile's place, row by row."""
        for row in range(len(self.tops_px)):
            for column in range(len(self.lefts_px)):
                yield self.window(row, column)

    def around(self, rows: range, columns: range) -> Window:
        """Return the rectangle that neighbouring tiles fill together."""
        top, left = self.tops_px[rows[0]], self.lefts_px[columns[0]]
        bottom, right = self.tops_px[rows[-1]] + self.height_px, self.lefts_px[columns[-1]] + self.width_px
        return Window(top, left, bottom - top, right - left)

    def blocks(self, most_px: int) -> Iterator[tuple[range, range]]:
        """Divide the grid into blocks of rows and columns that hold at most `most_px` pixels, or a single tile.

        Whole rows stay together as long as one of them fits: files hold their pixels row by row.
        """
        rows, columns = range(len(self.tops_px)), range(len(self.lefts_px))
        row_fits = self.around(rows[:1], columns).size_px <= most_px
        for some_rows in _runs(rows, lambda part: row_fits and self.around(part, columns).size_px <= most_px):
            for some_columns in _runs(columns, partial(self._fits, some_rows, most_px)):
                yield some_rows, some_columns

    def _fits(self, rows: range, most_px: int, columns: range) -> bool:
        return self.around(rows, columns).size_px <= most_px


def _runs(numbers: range, fits: Callable[[range], bool]) -> Iterator[range]:
    first = 0
    for stop in range(1, len(numbers) + 1):
        if stop == len(numbers) or not fits(numbers[first : stop + 1]):
            yield numbers[first:stop]
            first = stop


def _starts(length: int, window: int) -> Iterator[int]:
    yield from range(0, length - window, window)
    yield length - window
