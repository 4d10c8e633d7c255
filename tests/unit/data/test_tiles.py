import numpy as np
import pyarrow as pa
import pytest

from refocus.data.tiles import TILE_SCHEMA, Tile


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
