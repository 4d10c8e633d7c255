"""The limit: the same loop under torchrun, every batch ready in memory before the clock starts.

torchrun --nproc-per-node 2 tests/benchmarks/training/in_memory.py --dataset NAME --recipe NAME --set KEY=VALUE ...
"""

from __future__ import annotations

import argparse
import itertools
import json
import time

import torch
import torch.distributed

from refocus import recipes
from refocus.data.batches import BatchAssembler, TileBatch
from refocus.data.dataset import DatasetVersion
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.training.config import TrainingConfig
from refocus.training.loop import Trainer
from refocus.training.overrides import with_overrides


def batches(config: TrainingConfig, dataset: str, *, rank: int, world_size: int, size: int) -> list[TileBatch]:
    """Return one pass of this rank's batches."""
    version = DatasetVersion.open(ObjectStore(StoreSettings.from_environment()), dataset)
    tiles = list(itertools.islice(version.tiles("train", modalities=[config.modality]), rank, None, world_size))
    assembler = BatchAssembler(window_px=config.window_px, channels=config.network.channels, seed=config.seed)
    whole = len(tiles) // size
    return [assembler.assemble(tiles[i * size : (i + 1) * size]) for i in range(whole)]


def main() -> None:
    """Train, and print the speed after the first steps as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--skip", type=int, required=True, help="steps before the clock starts")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    config = with_overrides(recipes.get(options.recipe), options.set)
    cuda = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    device = torch.device(f"cuda:{rank}" if cuda else "cpu")
    if cuda:
        # Ray Train does so as well: what names no device would lie on every rank's first one.
        torch.cuda.set_device(device)
    trainer = Trainer(config, device=device, distributed=world_size > 1, world_size=world_size)
    ready = batches(config, options.dataset, rank=rank, world_size=world_size, size=trainer.local_batch_size)
    list(trainer.run(itertools.cycle(ready), until_step=options.skip))
    torch.distributed.barrier()
    started, before = time.perf_counter(), trainer.samples_seen
    list(trainer.run(itertools.cycle(ready)))
    torch.distributed.barrier()
    elapsed_s = time.perf_counter() - started
    if rank == 0:
        samples_per_s = (trainer.samples_seen - before) / elapsed_s
        print(json.dumps({"samples_per_s": samples_per_s, "threads": torch.get_num_threads()}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
