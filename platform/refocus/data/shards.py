"""Writing tiles as Parquet shards, with memory bounded by the shard and not by the stack."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from refocus.data.manifest import Shard
from refocus.data.splits import Split
from refocus.data.tiles import TILE_SCHEMA, Tile
from refocus.io.store import ObjectStore
from refocus.zstack import Modality

_SHARD_BYTES = 32 * 2**20
_ROW_GROUP_BYTES = 4 * 2**20


class ShardWriter:
    """Collects the tiles of one work unit and writes a shard whenever one is full.

    Keys follow from the unit's name and a counter, so a unit that is done again after a crash
    overwrites its own objects with the same bytes.
    """

    def __init__(self, store: ObjectStore, prefix: str, unit: str) -> None:
        self._store = store
        self._prefix = prefix
        self._unit = unit
        self._waiting: dict[tuple[Split, Modality], _Waiting] = {}
        self._shards: list[Shard] = []

    def add(self, split: Split, tile: Tile) -> None:
        """Take one tile; writes a shard when enough have come."""
        waiting = self._waiting.setdefault((split, tile.modality), _Waiting())
        waiting.tiles.append(tile)
        waiting.size_bytes += tile.pixels.nbytes + (0 if tile.target is None else tile.target.nbytes)
        if waiting.size_bytes >= _SHARD_BYTES:
            self._flush(split, tile.modality)

    def close(self) -> tuple[Shard, ...]:
        """Write what is left and return all shards of the unit."""
        for split, modality in list(self._waiting):
            self._flush(split, modality)
        return tuple(self._shards)

    def _flush(self, split: Split, modality: Modality) -> None:
        waiting = self._waiting.pop((split, modality))
        count = len(waiting.tiles)
        data = encode_shard(waiting.tiles, rows_per_group=max(1, count * _ROW_GROUP_BYTES // waiting.size_bytes))
        number = sum((shard.split, shard.modality) == (split, modality) for shard in self._shards)
        key = f"{self._prefix}{split}/{modality}-{self._unit}-{number:04d}.parquet"
        self._store.put(key, data)
        self._shards.append(Shard(key=key, split=split, modality=modality, rows=count, size_bytes=len(data)))


@dataclass
class _Waiting:
    tiles: list[Tile] = field(default_factory=list)
    size_bytes: int = 0


def encode_shard(tiles: list[Tile], *, rows_per_group: int) -> bytes:
    """Return `tiles` as one Parquet file; small row groups let a reader fetch a part by range."""
    sink = io.BytesIO()
    table = pa.Table.from_pylist([tile.row() for tile in tiles], schema=TILE_SCHEMA)
    # Pixels are noise to a dictionary; zstd at its fastest level still saves a third.
    pq.write_table(
        table, sink, row_group_size=rows_per_group, compression="zstd", compression_level=1, use_dictionary=False
    )
    return sink.getvalue()
