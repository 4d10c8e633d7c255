"""What runs on every train worker: the plain loop, fed by Ray Data, reporting to Ray Train."""

from __future__ import annotations

import itertools
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.data.collate_fn import ArrowBatchCollateFn
from ray.train import Checkpoint, CheckpointUploadMode

from refocus.data.batches import BatchAssembler, TileBatch
from refocus.data.dataset import DatasetVersion
from refocus.errors import DatasetIncomplete, NonFiniteLoss
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.training.config import TrainingConfig
from refocus.training.loop import StepMetrics, Trainer, ValidationSums
from refocus.training.package import package_of
from refocus.training.progress import Meter, progress_line
from refocus.training.runs import (
    RunRecord,
    fetch_checkpoint,
    read_progress,
    seal_folder,
    whole_checkpoints,
    write_progress,
)
from refocus.training.state import load_state, save_state

_T = TypeVar("_T")

_PREFETCHED_BATCHES = 3
_SHUFFLE_BATCHES = 8
_LINE_INTERVAL_S = 5.0


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train until the recipe's last step, reporting checkpoints on the way.

    Parameters
    ----------
    job : dict
        ``record`` (a `RunRecord` as JSON) and ``settings`` (`StoreSettings`).

    Returns
    -------
    dict
        ``step`` reached and, where training had to stop, ``failure``.
    """
    worker = _Worker(RunRecord.model_validate_json(job["record"]), job["settings"])
    try:
        worker.train()
    except NonFiniteLoss as error:
        # Every rank sees the same summed gradient and stops at the same step: nobody is left waiting, and
        # trying again would only meet the same batch.
        return {"step": worker.trainer.step, "failure": str(error)}
    return {"step": worker.trainer.step}


class _Worker:
    def __init__(self, record: RunRecord, settings: StoreSettings) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.record = record
        self.config: TrainingConfig = record.config
        self.store = ObjectStore(settings)
        self.trainer = Trainer(
            self.config,
            device=ray.train.torch.get_device(),
            distributed=self.world_size > 1,
            world_size=self.world_size,
        )
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.meter = Meter()
        self._restore()

    def train(self) -> None:
        """Run epochs until the last step."""
        config, trainer = self.config, self.trainer
        last_line = 0.0
        while not trainer.finished:
            before = trainer.step
            for step in trainer.run(self._batches()):
                self.meter.add(step)
                if self.rank == 0 and time.monotonic() - last_line > _LINE_INTERVAL_S:
                    last_line = time.monotonic()
                    print(progress_line(step, config.steps, self.meter, self.history, self.world_size), flush=True)
                if step.step % config.checkpoint_interval_steps == 0 or trainer.finished:
                    self._report(step)
            if trainer.step == before:
                raise DatasetIncomplete(
                    f"{self.record.dataset} gives no full batch: {config.batch_size} samples a step over "
                    f"{self.world_size} workers are more than its training tiles. Ingest more, or lower batch_size."
                )
            self.epoch += 1

    def _batches(self) -> Iterator[TileBatch]:
        size = self.trainer.local_batch_size
        collate = _Collate(
            BatchAssembler(
                window_px=self.config.window_px,
                channels=self.config.network.channels,
                seed=self.config.seed,
                epoch=self.epoch,
            )
        )
        shard = ray.train.get_dataset_shard("train")
        for tensors in shard.iter_torch_batches(
            batch_size=size,
            collate_fn=collate,
            device="cpu",
            drop_last=True,
            prefetch_batches=_PREFETCHED_BATCHES,
            local_shuffle_buffer_size=size * _SHUFFLE_BATCHES,
            local_shuffle_seed=self.config.seed + self.epoch,
        ):
            yield TileBatch(**tensors)

    def _report(self, step: StepMetrics) -> None:
        """Validate on all ranks and hand a checkpoint to Ray Train; a barrier for every rank."""
        validation = self._validate()
        metrics = {
            "step": step.step,
            "epoch": self.epoch,
            "loss": self.meter.loss,
            "samples_per_s": self.meter.samples_per_s * self.world_size,
            "data_wait_share": self.meter.data_wait_share,
            "gradient_norm": step.gradient_norm,
            "learning_rate": step.learning_rate,
            **{f"validation_{name}": value for name, value in validation.items()},
        }
        self.meter.restart()
        checkpoint = None
        if self.rank == 0:
            self.history.append(metrics | {"time": time.time()})
            write_progress(self.store, self.record.name, self.history)
            checkpoint = Checkpoint.from_directory(str(self._checkpoint_folder(metrics)))
            measured = ", ".join(f"{name} {value:.4g}" for name, value in validation.items())
            print(f"checkpoint at step {step.step}: {measured}", flush=True)
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            # No earlier attempt at this step may have used the name.
            checkpoint_dir_name=f"step-{step.step:08d}-{self._shared(uuid.uuid4().hex[:6])}",
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def _checkpoint_folder(self, metrics: dict[str, Any]) -> Path:
        # The upload is asynchronous and removes the folder itself: no TemporaryDirectory here.
        folder = Path(tempfile.mkdtemp(prefix="refocus-checkpoint-"))
        package_of(self.trainer, self.record, metrics).save(folder)
        save_state({"trainer": self.trainer.state_dict(), "epoch": self.epoch}, folder)
        seal_folder(
            folder,
            step=self.trainer.step,
            metrics={name: float(value) for name, value in metrics.items() if name.startswith("validation_")},
        )
        return folder

    def _validate(self) -> dict[str, float]:
        """Exact means over all validation tiles: every rank takes its share, the sums are added."""
        sums = self.trainer.validate(self._validation_batches())
        values = sums.as_tensor()
        if self.world_size > 1:
            values = values.to(self.trainer.device)
            torch.distributed.all_reduce(values)
        return ValidationSums.from_tensor(values.cpu()).means()

    def _validation_batches(self) -> Iterator[TileBatch]:
        dataset = DatasetVersion.open(self.store, self.record.dataset)
        tiles = dataset.tiles("validation", modalities=[self.config.modality])
        chosen = itertools.islice(tiles, self.rank, self.config.validation_tiles, self.world_size)
        assembler = BatchAssembler(
            window_px=self.config.window_px, channels=self.config.network.channels, seed=self.config.seed
        )
        while group := list(itertools.islice(chosen, self.trainer.local_batch_size)):
            yield assembler.assemble(group)

    def _restore(self) -> None:
        # Ray Train knows a checkpoint only after every rank has reported it; ours counts as soon as it is whole.
        checkpoints = whole_checkpoints(self.store, self.record.name) if self.rank == 0 else []
        newest = self._shared(checkpoints[-1] if checkpoints else None)
        if newest is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            state = load_state(fetch_checkpoint(self.store, newest, Path(folder)))
        self.trainer.load_state_dict(state["trainer"])
        # The pass that was interrupted is not finished: its samples are drawn anew in the next one.
        self.epoch = int(state["epoch"]) + 1
        if self.rank == 0:
            self.history = [e for e in read_progress(self.store, self.record.name) if e["step"] <= self.trainer.step]
            print(f"resumed at step {self.trainer.step} of {self.config.steps}", flush=True)

    def _shared(self, value: _T) -> _T:
        """What rank 0 has, on every rank."""
        values = [value]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(values, src=0, device=self.trainer.device)
        return values[0]


class _Collate(ArrowBatchCollateFn):
    """Ray Data's shape for `BatchAssembler`: Arrow rows in, tensors by name out."""

    def __init__(self, assembler: BatchAssembler) -> None:
        super().__init__()
        self._assembler = assembler

    def __call__(self, batch: Any) -> Any:
        return self._assembler(batch)
