#!/usr/bin/env python
"""Count the samples a second that a training worker receives, and its share of waiting, beside torch's DataLoader.

    tests/benchmarks/batches.py
    tests/benchmarks/batches.py --stacks 3 --side 768 --passes 1

Ours: shards in a SeaweedFS of its own, through Ray Data and Ray Train's feed as training reads them, in a train worker.
Theirs: torch's DataLoader over the same tiles, one uncompressed .npy file each on the local disk, and the same windows
cut from them. Each is asked for batches as fast as they come, and then by a worker that computes for `--step-ms`
between batches (it sleeps, as one does whose accelerator computes). The first pass of either starts its processes and
is not counted. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ingest import ANSWERS, encoded, focal_series
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from refocus import recipes
from refocus.data.batches import BatchAssembler
from refocus.data.dataset import DatasetVersion, version_prefix
from refocus.data.ingest import adopt_plan, ingest_unit, plan_ingest, seal
from refocus.data.splits import split_of
from refocus.data.tiles import Tile
from refocus.io.local_store import LocalStore
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.testing.cluster import LocalCluster
from refocus.training.config import TrainingConfig
from refocus.training.evaluate import commit, machine
from refocus.training.feed import TRAIN, Feed, training_rows
from refocus.training.passes import PassPosition

_DATASET = "tiles/v1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", type=int, default=6)
    parser.add_argument("--planes", type=int, default=21)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--passes", type=int, default=3, help="counted ones")
    parser.add_argument("--step-ms", type=float, default=100.0)
    parser.add_argument("--cores", type=int, default=2, help="for Ray, and loader processes less one")
    options = parser.parse_args()
    config = recipes.get("fluorescence")
    with tempfile.TemporaryDirectory(prefix="refocus-batches-") as name:
        folder = Path(name)
        local = LocalStore(folder / "store")
        settings = local.up()
        try:
            dataset = stored(ObjectStore(settings), options)
            tiles = on_disk(dataset, folder)
            describe(dataset, config, tiles)
            rows = theirs(tiles, config, options) + ours(settings, config, options, folder)
        finally:
            local.down()
    shares = bytes_per_sample(dataset, config)
    print(json.dumps({"benchmark": "batches", "machine": machine(), "commit": commit(), "rows": rows, **shares}))


def stored(store: ObjectStore, options: argparse.Namespace) -> DatasetVersion:
    names = [name for name in (f"s{n}" for n in range(1000)) if split_of(name) == "train"][: options.stacks]
    for number, name in enumerate(names):
        store.put(f"raw/{name}.tif", encoded(focal_series(options.planes, options.side, seed=number), "none"))
    plan = adopt_plan(store, *_DATASET.split("/"), plan_ingest(store, "raw/", fallback=ANSWERS))
    prefix = version_prefix(*_DATASET.split("/"))
    return seal(store, *_DATASET.split("/"), plan, [ingest_unit(store, prefix, plan, unit) for unit in plan.units])


def on_disk(dataset: DatasetVersion, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Write each tile's pixels and target as one .npy, and return the files with what else a tile says."""
    found = []
    for number, tile in enumerate(dataset.tiles("train")):
        path = folder / f"{number}.npy"
        np.save(path, np.stack([tile.pixels, tile.pixels if tile.target is None else tile.target]))
        found.append((path, {k: v for k, v in tile_fields(tile).items() if k not in ("pixels", "target")}))
    return found


def tile_fields(tile: Tile) -> dict[str, Any]:
    return {name: getattr(tile, name) for name in Tile.__slots__}


def bytes_per_sample(dataset: DatasetVersion, config: TrainingConfig) -> dict[str, float]:
    """Bytes of shards a row, and how many times the sample itself that is: its two windows, as stored, 2 bytes."""
    # A window that reaches beyond its tile is mirrored there: no bytes of it are read.
    sample = 2 * 2 * min(config.window_px, dataset.manifest.settings.tile_px) ** 2
    read = sum(shard.size_bytes for shard in dataset.manifest.shards) / dataset.manifest.rows("train")
    return {"bytes_read_per_sample": round(read), "times_the_sample": round(read / sample, 2)}


def describe(dataset: DatasetVersion, config: TrainingConfig, tiles: list[Any]) -> None:
    found = bytes_per_sample(dataset, config)
    local = tiles[0][0].stat().st_size
    print(
        f"{len(tiles)} pairs of tiles of {dataset.manifest.settings.tile_px} px; windows of {config.window_px} px\n"
        f"bytes read a sample: {found['bytes_read_per_sample']} from S3, {found['times_the_sample']} times the sample; "
        f"{local} from local disk",
        flush=True,
    )


class LocalTiles(torch.utils.data.Dataset[Tile]):
    """Tiles from .npy files."""

    def __init__(self, tiles: list[tuple[Path, dict[str, Any]]]) -> None:
        self._tiles = tiles

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, number: int) -> Tile:
        path, said = self._tiles[number]
        pixels, target = np.load(path)
        return Tile(**said, pixels=pixels, target=target)


def theirs(
    tiles: list[tuple[Path, dict[str, Any]]], config: TrainingConfig, options: argparse.Namespace
) -> list[dict[str, Any]]:
    assembler = BatchAssembler(window_px=config.window_px, channels=config.network.channels, seed=0)
    loader = torch.utils.data.DataLoader(
        LocalTiles(tiles), batch_size=options.batch, shuffle=True, drop_last=True, persistent_workers=True,
        num_workers=max(1, options.cores - 1), prefetch_factor=3, collate_fn=assembler.assemble,
    )  # fmt: skip
    return [row(f"torch DataLoader, local disk, {loader.num_workers} process", *each)
            for each in paces(lambda: loader, options)]  # fmt: skip


def ours(
    settings: StoreSettings, config: TrainingConfig, options: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    job = {"settings": settings, "config": config, "options": options, "out": str(folder / "rows.json")}
    environment = settings.environment() | {
        "PYTHONPATH": str(Path(__file__).parent),
        # As many idle processes are kept as a cluster has CPUs; with three, each pass would start its readers anew.
        "RAY_num_workers_soft_limit": "12",
    }
    with LocalCluster(num_cpus=options.cores + 1, environment=environment) as cluster:
        os.environ.update({k: v for k, v in cluster.environment.items() if k.startswith("RAY_")})
        ray.init(address=cluster.environment["RAY_ADDRESS"], log_to_driver=False)
        try:
            dataset = DatasetVersion.open(ObjectStore(settings), _DATASET)
            TorchTrainer(
                train_worker,
                train_loop_config=job,
                scaling_config=ScalingConfig(num_workers=1),
                run_config=RunConfig(name="batches", storage_path=str(folder / "runs")),
                datasets={TRAIN: training_rows(dataset, config)},
            ).fit()
        finally:
            ray.shutdown()
    return [row("refocus, S3 through Ray Data", *each) for each in json.loads(Path(job["out"]).read_text())]


def train_worker(job: dict[str, Any]) -> None:
    dataset = DatasetVersion.open(ObjectStore(job["settings"]), _DATASET)
    options, config, position = job["options"], job["config"], PassPosition()
    feed = Feed(
        training_rows(dataset, config), config, tiles=dataset.manifest.rows("train"), batch_size=options.batch, rank=0,
        world_size=1, shared=lambda mine: mine,
    )  # fmt: skip

    def one_pass() -> Iterator[Any]:
        yield from feed.batches(position)
        position.finish()

    Path(job["out"]).write_text(json.dumps(paces(one_pass, options)))


def paces(one_pass: Callable[[], Iterable[Any]], options: argparse.Namespace) -> list[tuple[float, ...]]:
    """What `consumed` finds as fast as batches come and with a step between; a pass before starts all processes."""
    consumed(one_pass, 1, 0.0)
    return [(ms, *consumed(one_pass, options.passes, ms)) for ms in (0.0, options.step_ms)]


def consumed(one_pass: Callable[[], Iterable[Any]], passes: int, step_ms: float) -> tuple[float, float, float]:
    """Return samples a second, the share of time waited, and the seconds until the first batch of a pass."""
    samples, waits, firsts = 0, list[float](), list[int]()
    begun = time.perf_counter()
    for _ in range(passes):
        firsts.append(len(waits))
        asked = time.perf_counter()
        for batch in one_pass():
            waits.append(time.perf_counter() - asked)
            samples += len(batch)
            time.sleep(step_ms / 1e3)
            asked = time.perf_counter()
        waits.append(time.perf_counter() - asked)
    seconds = time.perf_counter() - begun
    return samples / seconds, sum(waits) / seconds, float(np.mean([waits[first] for first in firsts]))


def row(way: str, step_ms: float, samples_per_s: float, waiting: float, first_s: float) -> dict[str, Any]:
    pace = "as fast as they come" if step_ms == 0 else f"{step_ms:.0f} ms a step"
    print(f"  {way:42} {pace:22} {samples_per_s:8.1f} samples/s, {waiting:4.0%} waiting, "
          f"{first_s:5.2f} s to the first of a pass", flush=True)  # fmt: skip
    return {"way": way, "step_ms": step_ms, "samples_per_s": round(samples_per_s, 1), "waiting": round(waiting, 3),
            "first_batch_s": round(first_s, 2)}  # fmt: skip


if __name__ == "__main__":
    main()
