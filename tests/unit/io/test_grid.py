import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refocus.io.grid import TileGrid

sides = st.integers(1, 700)


@given(sides, sides, st.integers(32, 300))
def test_tiles_cover_every_pixel_and_stay_inside(height, width, tile_px):
    grid = TileGrid.over(height, width, tile_px)
    covered = np.zeros((height, width), bool)
    for window in grid.windows():
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
