"""Tiles that are read again and again, such as validation's: kept in memory where a bound allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from refocus.data.tiles import Tile


class KeptTiles:
    """Tiles from a slow source that are read once if all of them fit into memory, and every time if not.

    Parameters
    ----------
    read : callable
        ``read()`` opens the source from its beginning; it gives the same tiles every time.
    limit_bytes : int
        Most bytes of pixels that are kept.
    """

    def __init__(self, read: Callable[[], Iterator[Tile]], *, limit_bytes: int) -> None:
        self._read = read
        self._limit_bytes = limit_bytes
        self._kept: list[Tile] | None = None

    def __iter__(self) -> Iterator[Tile]:
        if self._kept is not None:
            yield from self._kept
            return
        fitting: list[Tile] | None = []
        size_bytes = 0
        for tile in self._read():
            size_bytes += tile.pixels.nbytes + (0 if tile.target is None else tile.target.nbytes)
            if size_bytes > self._limit_bytes:
                fitting = None
            if fitting is not None:
                fitting.append(tile)
            yield tile
        self._kept = fitting
