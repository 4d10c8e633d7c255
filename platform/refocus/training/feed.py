"""A train worker's batches: Ray Data's rows, pass after pass, from wherever an earlier worker group stopped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import ray.data
import ray.train
from ray.data.collate_fn import ArrowBatchCollateFn
from ray.train import DataConfig

from refocus.data.batches import BatchAssembler, TileBatch
from refocus.data.dataset import DatasetVersion
from refocus.training.config import TrainingConfig
from refocus.training.passes import PassPosition, without

_PREFETCHED_BATCHES = 3
_SHUFFLE_BATCHES = 8

# Read tasks ask for no processor: they wait for the network more than they compute, and where an elastic group of
# workers had taken every processor, training and reading would wait for each other for ever.
_READS_AT_ONCE = 4

#: Name of the dataset that Ray Train splits over the workers.
TRAIN = "train"


def training_rows(dataset: DatasetVersion, config: TrainingConfig) -> ray.data.Dataset:
    """Return the rows that a recipe trains on, shard by shard in an order that its seed decides for each pass.

    Shards are put in order before they are read. To put blocks in order afterwards, Ray Data waits for all of them: the
    first batch came when the whole pass had been read, and a large dataset would not have fitted.
    """
    return dataset.rows(
        "train",
        modalities=[config.modality],
        num_cpus=0,
        concurrency=_READS_AT_ONCE,
        shuffle=ray.data.FileShuffleConfig(seed=config.seed),
    )


class Feed:
    """The batches of one rank.

    Parameters
    ----------
    rows : Dataset
        What `training_rows` gave; made before workers started, since listing its files asks for a processor.
    tiles : int
        How many those are.
    config : TrainingConfig
    batch_size : int
        Of this rank.
    rank, world_size : int
    shared : callable
        Gives every rank what rank 0 has.
    """

    def __init__(
        self,
        rows: ray.data.Dataset,
        config: TrainingConfig,
        *,
        tiles: int,
        batch_size: int,
        rank: int,
        world_size: int,
        shared: Callable[[Any], Any],
    ) -> None:
        self._rows = rows
        self._config = config
        self._batch_size = batch_size
        self._rank, self._world_size = rank, world_size
        self._shared = shared
        self._whole = ray.train.get_dataset_shard(TRAIN)
        self._tiles = tiles

    def batches(self, position: PassPosition) -> Iterator[TileBatch]:
        """Yield what the pass still owes as of `position`."""
        had = int(self._shared(len(position.had)))
        if self._tiles - had < self._batch_size * self._world_size:
            return
        rows = self._rest(position) if had else self._whole
        for tensors in rows.iter_torch_batches(
            batch_size=self._batch_size,
            collate_fn=_Collate(self._assembler(position)),
            device="cpu",
            drop_last=True,
            prefetch_batches=_PREFETCHED_BATCHES,
            local_shuffle_buffer_size=self._batch_size * _SHUFFLE_BATCHES,
            local_shuffle_seed=self._config.seed + position.number,
        ):
            yield TileBatch(**tensors)

    def _rest(self, position: PassPosition) -> ray.data.DataIterator:
        # What Ray Train splits is fixed before workers start; what is left of a pass is known only here.
        shards: list[Any] = []
        if self._rank == 0:
            had = position.had.numpy()
            rows = self._rows.map_batches(
                functools.partial(without, had=had), batch_format="pyarrow", batch_size=None, num_cpus=0
            )
            split = DataConfig().configure({TRAIN: rows}, self._world_size, None, None)
            shards = [each[TRAIN] for each in split]
        return self._shared(shards)[self._rank]

    def _assembler(self, position: PassPosition) -> BatchAssembler:
        return BatchAssembler(
            window_px=self._config.window_px,
            channels=self._config.network.channels,
            seed=self._config.seed,
            epoch=position.number,
        )


class _Collate(ArrowBatchCollateFn):
    """Ray Data's shape for `BatchAssembler`: Arrow rows in, tensors by name out."""

    def __init__(self, assembler: BatchAssembler) -> None:
        super().__init__()
        self._assembler = assembler

    def __call__(self, batch: Any) -> Any:
        return self._assembler(batch)
