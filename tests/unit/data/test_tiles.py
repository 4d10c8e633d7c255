import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refocus.data.tiles import TILE_SCHEMA, Tile, TileGrid


def tile(**changes) -> Tile:
    rng = np.random.default_rng(0)
    fields = {
        "source": "raw/a.tif",
        "specimen": "a",
        "modality": "fluorescence",
        "kind": "pair",
        "pixels": rng.integers(0, 60000, (1, 20, 30), dtype=np.uint16),
        "target": rng.integers(0, 60000, (1, 20, 30), dtype=np.uint16),
        "offset": 100.0,
        "scale": 2000.0,
        "y_px": 0,
        "x_px": 0,
        "plane": 3,
    }
    return Tile(**(fields | changes))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_tile_survives_parquet_columns_bit_by_bit(dtype):
    pixels = (np.random.default_rng(1).random((3, 16, 17)) * 200).astype(dtype)
    written = tile(pixels=pixels, target=None, kind="sharp", plane=None)
    table = pa.Table.from_pylist([written.row()], schema=TILE_SCHEMA)
    read = Tile.from_row(table.to_pylist()[0])
    np.testing.assert_array_equal(read.pixels, pixels)
    assert read.pixels.dtype == pixels.dtype
    assert read.target is None
    assert read.index == written.index


def test_index_tells_planes_and_places_apart():
    indices = {tile(plane=p, y_px=y, source=s).index for p in range(5) for y in (0, 256) for s in ("a", "b")}
    assert len(indices) == 20
    assert all(0 <= index < 2**63 for index in indices)


sides = st.integers(1, 700)


@given(sides, sides, st.integers(32, 300))
def test_tiles_cover_every_pixel_and_stay_inside(height, width, tile_px):
    grid = TileGrid.over(height, width, tile_px)
    covered = np.zeros((height, width), bool)
    for row in range(len(grid.tops_px)):
        for column in range(len(grid.lefts_px)):
            window = grid.window(row, column)
            assert window.height_px == min(height, tile_px)
            assert window.width_px == min(width, tile_px)
            assert window.y_px >= 0
            assert window.y_px + window.height_px <= height
            assert window.x_px + window.width_px <= width
            covered[window.slices] = True
    assert covered.all()


@given(sides, sides, st.integers(32, 300), st.integers(1, 10**6))
def test_blocks_hold_every_tile_once_and_no_more_pixels_than_may_be_held(height, width, tile_px, most_px):
    grid = TileGrid.over(height, width, tile_px)
    held = np.zeros((len(grid.tops_px), len(grid.lefts_px)), int)
    for rows, columns in grid.blocks(most_px):
        around = grid.around(rows, columns)
        assert around.size_px <= most_px or (len(rows), len(columns)) == (1, 1)
        # Parts of rows are read only where a whole row of tiles is too much.
        assert len(columns) == held.shape[1] or grid.around(rows[:1], range(held.shape[1])).size_px > most_px
        held[rows.start : rows.stop, columns.start : columns.stop] += 1
    assert (held == 1).all()
