from collections.abc import Iterator

import numpy as np
import pytest

from refocus.data.tiles import Tile
from refocus.training.kept_tiles import KeptTiles


def tile(number: int) -> Tile:
    pixels = np.full((1, 10, 10), number, np.uint8)
    return Tile("a.tif", "a", "fluorescence", "sharp", pixels, None, 0.0, 1.0, number, 0)


class Source:
    def __init__(self) -> None:
        self.read = 0

    def __call__(self) -> Iterator[Tile]:
        for number in range(4):
            self.read += 1
            yield tile(number)


@pytest.mark.parametrize(("limit_bytes", "read"), [(400, 4), (399, 8)], ids=["fits", "too-large"])
def test_tiles_are_read_once_where_they_fit_and_the_same_every_time(limit_bytes: int, read: int) -> None:
    source = Source()
    tiles = KeptTiles(source, limit_bytes=limit_bytes)
    first, second = ([t.y_px for t in tiles] for _ in range(2))
    assert first == second == [0, 1, 2, 3]
    assert source.read == read


def test_a_look_at_the_first_ones_does_not_pass_for_all() -> None:
    tiles = KeptTiles(Source(), limit_bytes=10_000)
    next(iter(tiles))
    assert len(list(tiles)) == 4
