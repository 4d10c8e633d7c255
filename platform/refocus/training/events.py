"""TensorBoard's event files of a run, in the object store.

Each report writes one small file, named after its step: objects do not grow, and a report that is repeated after a
failure takes the place of the first. ``tensorboard --logdir s3://BUCKET/runs/NAME/tensorboard`` reads them in order.
They are made in memory: a disk that is full must not end a run.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping
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
    from tensorboardX.record_writer import REGISTERED_FACTORIES, register_writer_factory

    memory, place = _Memory(), f"memory-{uuid.uuid4().hex}"
    register_writer_factory(place, memory)
    try:
        with SummaryWriter(f"{place}://events") as writer:
            for name, value in scalars.items():
                if isinstance(value, (int, float)):
                    writer.add_scalar(_tag(name), value, step, walltime=wall_time_s)
            for number, image in enumerate(examples if examples is not None else ()):
                writer.add_image(f"before-after-truth/{number}", image.numpy(), step, walltime=wall_time_s)
    finally:
        REGISTERED_FACTORIES.pop(place)
    store.put(f"{run_prefix(run)}{FOLDER}events.out.tfevents.{step:010d}", memory.written)


class _Memory:
    """A place that tensorboardX writes its one file to."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()

    @property
    def written(self) -> bytes:
        return self._buffer.getvalue()

    def open(self, path: str) -> _Memory:
        return self

    def directory_check(self, path: str) -> None:
        pass

    def write(self, data: bytes) -> None:
        self._buffer.write(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


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
