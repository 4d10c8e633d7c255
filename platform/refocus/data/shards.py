"""Writing tiles as Parquet shards, with memory bounded by the shard and not by the stack."""

from __future__ import annotations

import io
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import itemgetter
from types import TracebackType
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from refocus.data.manifest import Shard
from refocus.data.splits import Split
from refocus.data.tiles import TILE_SCHEMA, Tile
from refocus.io.store import ObjectStore
from refocus.zstack import Modality

_SHARD_BYTES = 16 * 2**20
_ROW_GROUP_BYTES = 4 * 2**20
# Tiles come place by place, all planes of one after the other. Dealt out by plane, a shard holds some planes of many
# places: neighbours in a batch differ, and what a place's planes share, its target, is still written once for several.
_MOST_LANES = 8
# Shards encoded and sent at a time: a store answers each after a while, and takes several meanwhile.
_MOST_WRITING = 3
# A dictionary larger than this would end dictionary encoding midway; a row group's targets are smaller.
_DICTIONARY_BYTES = 4 * _ROW_GROUP_BYTES


class ShardWriter:
    """Collects the tiles of one work unit and writes a shard whenever one is full; a context manager.

    Keys follow from the unit's name and a counter, so a unit that is done again after a crash
    overwrites its own objects with the same bytes.

    Parameters
    ----------
    store : ObjectStore
    prefix : str
        Of the dataset version, with a trailing slash.
    unit : str
    expected_bytes : int
        About how much will come: a little is not dealt out to many shards.
    """

    def __init__(self, store: ObjectStore, prefix: str, unit: str, *, expected_bytes: int) -> None:
        self._store = store
        self._prefix = prefix
        self._unit = unit
        self._lanes = max(1, min(_MOST_LANES, expected_bytes // _SHARD_BYTES))
        self._waiting: dict[tuple[Split, Modality, int], _Waiting] = {}
        self._shards: list[Shard] = []
        self._last_target: tuple[npt.NDArray[Any] | None, bytes | None] = (None, None)
        self._writer = ThreadPoolExecutor(max_workers=_MOST_WRITING, thread_name_prefix="refocus-write")
        self._writing: deque[Future[Shard]] = deque()
        self._numbers: Counter[tuple[Split, Modality]] = Counter()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown()

    def add(self, split: Split, tile: Tile) -> None:
        """Take one tile; writes a shard when enough have come."""
        if tile.target is not self._last_target[0]:
            self._last_target = (tile.target, None if tile.target is None else tile.target.tobytes())
        lane = (split, tile.modality, (tile.plane or 0) % self._lanes)
        waiting = self._waiting.setdefault(lane, _Waiting())
        waiting.add(tile.row(target=self._last_target[1]))
        if waiting.size_bytes >= _SHARD_BYTES:
            self._flush(lane)

    def finish(self) -> tuple[Shard, ...]:
        """Write what is left and return all shards of the unit."""
        for lane in list(self._waiting):
            self._flush(lane)
        self._take_written(at_most=0)
        return tuple(self._shards)

    def _flush(self, lane: tuple[Split, Modality, int]) -> None:
        split, modality, _ = lane
        waiting = self._waiting.pop(lane)
        self._take_written(at_most=_MOST_WRITING - 1)
        number = self._numbers[split, modality]
        self._numbers[split, modality] += 1
        key = f"{self._prefix}{split}/{modality}-{self._unit}-{number:04d}.parquet"

        def write() -> Shard:
            data = encode_shard(waiting.rows, size_bytes=waiting.size_bytes)
            self._store.put(key, data)
            return Shard(key=key, split=split, modality=modality, rows=len(waiting.rows), size_bytes=len(data))

        # Some shards are encoded and sent while the next is being filled.
        self._writing.append(self._writer.submit(write))

    def _take_written(self, *, at_most: int) -> None:
        """Wait until no more than so many are under way, oldest first, so that the list keeps their order."""
        while len(self._writing) > at_most:
            self._shards.append(self._writing.popleft().result())


@dataclass
class _Waiting:
    rows: list[dict[str, Any]] = field(default_factory=list)
    size_bytes: int = 0

    def add(self, row: dict[str, Any]) -> None:
        target = row["target"]
        is_new = target is not None and not (self.rows and self.rows[-1]["target"] is target)
        self.rows.append(row)
        self.size_bytes += len(row["pixels"]) + (len(target) if is_new else 0)


def encode_shard(rows: list[dict[str, Any]], *, size_bytes: int) -> bytes:
    """Return rows of `TILE_SCHEMA` as one Parquet file; small row groups let a reader fetch a part by range.

    A target that several rows of a group share is stored once, as the entry of a dictionary.
    """
    sink = io.BytesIO()
    ordered = sorted(rows, key=itemgetter("source", "y_px", "x_px"))
    # Pixels are noise to a dictionary; zstd at its fastest level still saves a third.
    pq.write_table(
        pa.Table.from_pylist(ordered, schema=TILE_SCHEMA),
        sink,
        row_group_size=max(1, len(rows) * _ROW_GROUP_BYTES // max(1, size_bytes)),
        compression="zstd",
        compression_level=1,
        use_dictionary=["target"],
        dictionary_pagesize_limit=_DICTIONARY_BYTES,
    )
    return sink.getvalue()
