"""A dataset version read in part: which tiles are drawn, and what is read for it."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from refocus.data.dataset import DatasetVersion
from refocus.data.manifest import DatasetManifest, IngestSettings, Shard
from refocus.data.shards import encode_shard
from refocus.data.tiles import Tile
from refocus.errors import DatasetMissing

PLANES = range(-3, 4)


def tiles_of(specimen: str, *, places: int = 5):
    rng = np.random.default_rng(0)
    for place in range(places):
        target = rng.integers(0, 255, (1, 160, 160), np.uint8)
        for plane in PLANES:
            yield Tile(
                source=f"{specimen}.tif", specimen=specimen, modality="fluorescence", kind="pair",
                pixels=target + np.uint8(abs(plane)), target=target, offset=0.0, scale=255.0, y_px=160 * place, x_px=0,
                plane=plane - PLANES[0], planes_from_focus=plane + 0.25,
            )  # fmt: skip


@pytest.fixture
def version(store) -> DatasetVersion:
    """Four specimens, a shard each, of 35 tiles in several row groups."""
    shards = []
    for specimen in "abcd":
        rows = [tile.row() for tile in tiles_of(specimen)]
        data = encode_shard(rows, size_bytes=len(rows) * 2**20)
        key = f"datasets/plates/v1/validation/fluorescence-{specimen}-0000.parquet"
        store.put(key, data)
        shards.append(Shard(key=key, split="validation", modality="fluorescence", rows=len(rows), size_bytes=len(data)))
    manifest = DatasetManifest(
        name="plates", version="v1", raw_prefix="raw/", created=datetime(2026, 1, 1, tzinfo=UTC), shards=tuple(shards),
        settings=IngestSettings(), sources=(), quarantined=0,
    )  # fmt: skip
    return DatasetVersion(store, manifest)


def test_a_name_that_no_dataset_has_is_answered_with_those_that_there_are(version):
    version.store.put("datasets/begun/v1/plan.json", b"{}")
    with pytest.raises(DatasetMissing, match="there is: none yet"):
        DatasetVersion.open(version.store, "plaets")
    version.store.put("datasets/plates/v1/manifest.json", version.manifest.model_dump_json().encode())
    with pytest.raises(DatasetMissing, match=r"'plaets' .* there is: plates"):
        DatasetVersion.open(version.store, "plaets")


def test_a_draw_is_of_all_specimens_and_depths_where_the_first_tiles_are_of_one(version):
    first = [tile for tile, _ in zip(version.tiles("validation"), range(16), strict=False)]
    assert {tile.specimen for tile in first} == {"a"}
    found = list(version.tiles_of("validation", version.draw("validation", 16)))
    assert len(found) == 16
    assert {tile.specimen for tile in found} == set("abcd")
    assert len({tile.plane for tile in found}) >= 5


def test_in_focus_planes_are_not_drawn(version):
    everything = version.draw("validation", 10_000)
    kept = {tile.index for tile in version.tiles("validation") if not tile.is_its_own_target}
    assert set(everything) == kept
    assert len(everything) == 4 * 5 * (len(PLANES) - 1)


def test_tiles_come_by_their_index_as_they_were_written(version):
    wanted = version.draw("validation", 7)
    written = {tile.index: tile for tile in version.tiles("validation")}
    found = list(version.tiles_of("validation", wanted))
    assert {tile.index for tile in found} == set(wanted)
    for tile in found:
        np.testing.assert_array_equal(tile.pixels, written[tile.index].pixels)
        np.testing.assert_array_equal(tile.target, written[tile.index].target)
    assert list(version.tiles_of("validation", [])) == []


def test_drawing_reads_indices_and_no_pixels(version, monkeypatch):
    fetched = []
    get_range = type(version.store).get_range

    def counted(store, key, start, stop, **more):
        fetched.append(stop - start)
        return get_range(store, key, start, stop, **more)

    monkeypatch.setattr(type(version.store), "get_range", counted)
    monkeypatch.setattr(type(version.store), "get", None)
    version.draw("validation", 16)
    # Footers and indices, in blocks of 8 KiB: an eighth of shards that are a sixteenth of the usual size.
    assert sum(fetched) < 0.2 * sum(shard.size_bytes for shard in version.manifest.shards)
