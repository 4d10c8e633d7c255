"""TensorBoard's event files of a run, in the object store.

Each report writes one small file, named after its step: objects do not grow, and a report that is repeated after a
failure takes the place of the first. ``tensorboard --logdir s3://BUCKET/runs/NAME/tensorboard`` reads them in order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refocus.io.store import ObjectStore
from refocus.training.runs import run_prefix

FOLDER = "tensorboard/"


def write_events(
    store: ObjectStore, run: str, *, step: int, wall_time_s: float, scalars: Mapping[str, Any], examples: Tensor | None
) -> None:
    """Write one report's scalars and example images.

    Parameters
    ----------
    scalars : mapping
        Values that are no numbers are left out.
    examples : Tensor, shape (N, C, H, 3 W), or None
        What `side_by_side` made.
    """
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory(prefix="refocus-events-") as folder:
        with SummaryWriter(folder) as writer:
            for name, value in scalars.items():
                if isinstance(value, (int, float)):
                    writer.add_scalar(_tag(name), value, step, walltime=wall_time_s)
            for number, image in enumerate(examples if examples is not None else ()):
                writer.add_image(f"before-after-truth/{number}", image.numpy(), step, walltime=wall_time_s)
        (file,) = Path(folder).iterdir()
        store.put(f"{run_prefix(run)}{FOLDER}events.out.tfevents.{step:010d}", file.read_bytes())


def side_by_side(before: Tensor, after: Tensor, truth: Tensor) -> Tensor:
    """Join images on one grey scale, the one that shows 99.5% of the truth's range.

    Parameters
    ----------
    before, after, truth : Tensor, float32, shape (N, C, H, W)

    Returns
    -------
    Tensor, float32, shape (N, C, H, 3 W)
        Between 0 and 1.
    """
    flat = truth.flatten(1).float()
    low, high = (flat.quantile(q, dim=1)[:, None, None, None] for q in (0.0025, 0.9975))
    joined = torch.cat([before, after, truth], dim=-1).float()
    return ((joined - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)


def _tag(name: str) -> str:
    return f"validation/{name.removeprefix('validation_')}" if name.startswith("validation_") else f"training/{name}"
