#!/usr/bin/env python
"""What a training step is made of, with pairs formed for one batch at a time and for several.

    tests/benchmarks/training/step.py --device cuda --batch 64
    tests/benchmarks/training/step.py --batch 4 --crop 160 --steps 8

The recipe's own loop without Ray or a store, on simulated specimens. Milliseconds a step, each waited for; operations
that torch is asked for; and on an accelerator how long it works. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from refocus import recipes
from refocus.data.batches import TileBatch
from refocus.optics.simulate import simulate_focal_series
from refocus.training.config import TrainingConfig
from refocus.training.evaluate import commit, machine
from refocus.training.loop import Trainer

#: Before anything is timed: libraries load, transforms are planned.
_WARM_UP = 4


class Counted(TorchDispatchMode):
    """Counts operations, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return function(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="fluorescence", help="one of the recipes for one channel")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=288)
    parser.add_argument("--steps", type=int, default=16, help="timed, a multiple of --at-once")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    config = recipes.get(options.recipe).model_copy(update={"batch_size": options.batch, "crop_px": options.crop})
    specimens = specimen_tiles(config)
    print(f"{options.recipe}, {options.batch} crops of {options.crop} px on {options.device}")
    rows = [measured(config, options, at_once, specimens) for at_once in options.at_once]
    print(json.dumps({"machine": machine(), "commit": commit(), "rows": rows}))


def specimen_tiles(config: TrainingConfig, fields: int = 8) -> torch.Tensor:
    """[fields, 1, window, window], in units of their bright percentile, mirrored where windows are larger."""
    tiles = []
    for number in range(fields):
        kind = ("nuclei", "filaments", "puncta", "membranes")[number % 4]
        _, truth = simulate_focal_series(kind, planes=1, size_px=(384, 384), thin=True, seed=number)
        tile = torch.from_numpy(truth.in_focus).float()
        turned = torch.cat([tile, tile.flip(0)]).repeat(2, 1)
        whole = torch.cat([turned, turned.flip(1)], 1).repeat(1, 2)[: config.window_px, : config.window_px]
        tiles.append((whole - whole.min()) / torch.quantile(tile - tile.min(), 0.998))
    return torch.stack(tiles)[:, None]


def batches(config: TrainingConfig, specimens: torch.Tensor) -> Iterator[TileBatch]:
    size, number = config.batch_size, 0
    while True:
        index = torch.arange(number, number + size)
        pixels = specimens[index % len(specimens)]
        unknown = torch.full((size,), float("nan"))
        yield TileBatch(
            pixels,
            pixels,
            torch.ones(size, dtype=torch.bool),
            torch.zeros(size),
            unknown,
            index,
            torch.zeros(size).long(),
        )
        number += size


def measured(
    config: TrainingConfig, options: argparse.Namespace, at_once: int, specimens: torch.Tensor
) -> dict[str, object]:
    trainer = Trainer(config, device=options.device)
    trainer.batches_at_once = at_once
    given = batches(config, specimens.to(trainer.device))
    list(trainer.run(given, until_step=_WARM_UP))
    timed = list(trainer.run(given, until_step=_WARM_UP + options.steps))
    pairs_ms, network_ms = (1e3 * sum(getattr(s, name) for s in timed) / len(timed) for name in ("pairs_s", "step_s"))
    with Counted() as counted:
        list(trainer.run(given, until_step=trainer.step + at_once))
    row = {
        "batches_at_once": at_once,
        "pairs_ms": round(pairs_ms, 1),
        "network_ms": round(network_ms, 1),
        "operations": round(counted.operations / at_once),
        "device_busy_ms": busy_ms(trainer, given, at_once),
    }
    print("  " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items()))
    return row


def busy_ms(trainer: Trainer, given: Iterator[TileBatch], at_once: int) -> float | None:
    """Milliseconds a step that an accelerator works; None on a processor."""
    if trainer.device.type == "cpu":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        list(trainer.run(given, until_step=trainer.step + at_once))
    return round(sum(event.self_device_time_total for event in profile.key_averages()) / 1e3 / at_once, 1)


if __name__ == "__main__":
    main()
