"""What runs on every train worker: the plain loop, fed by Ray Data, reporting to Ray Train."""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import ray.data
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train import Checkpoint, CheckpointUploadMode
from safetensors import SafetensorError

from refocus.data.batches import BatchAssembler, TileBatch
from refocus.data.dataset import DatasetVersion
from refocus.data.tiles import Tile
from refocus.errors import NonFiniteLoss, TrainingError
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.training.config import TrainingConfig
from refocus.training.device import DeviceMeter
from refocus.training.events import side_by_side, write_events
from refocus.training.feed import Feed
from refocus.training.gauges import RunGauges
from refocus.training.kept_tiles import KeptTiles
from refocus.training.loop import Trainer
from refocus.training.outcomes import StepMetrics, ValidationSums
from refocus.training.package import package_of
from refocus.training.passes import PassPosition
from refocus.training.progress import Interval, Meter, progress_line
from refocus.training.runs import (
    Attempt,
    RunRecord,
    add_attempt,
    fetch_checkpoint,
    now,
    seal_folder,
    whole_checkpoints,
    write_progress,
)
from refocus.training.state import load_state, save_state

_T = TypeVar("_T")

_LINE_INTERVAL_S = 5.0
_PREEMPTION_CHECK_S = 5.0
_EXAMPLES = 4
_KEPT_VALIDATION_BYTES = 512 * 2**20
# A checkpoint that cannot be written is made up for by the next; several in a row are a disk that stays full.
_CHECKPOINTS_MISSED_AT_MOST = 3
# Starts of one submission from the same checkpoint: what fails this often without a step forward will go on failing.
_STARTS_WITHOUT_PROGRESS = 4


class _StandsStillError(TrainingError):
    """The run cannot get any further: starting its workers again would not help."""


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train until the recipe's last step, reporting checkpoints on the way.

    Parameters
    ----------
    job : dict
        ``record`` (a `RunRecord` as JSON), ``settings`` (`StoreSettings`), ``rows`` (of `training_rows`) and
        ``submission`` (its name).

    Returns
    -------
    dict
        ``step`` reached and, where training had to stop, ``failure`` and ``kind``, the error's class.
    """
    worker = _Worker(RunRecord.model_validate_json(job["record"]), job["settings"], job["submission"])
    try:
        worker.train(job["rows"])
    except (NonFiniteLoss, _StandsStillError) as error:
        # Every rank sees the same and stops at the same step: nobody is left waiting, and trying again would only
        # end there again.
        return {"step": worker.trainer.step, "failure": str(error), "kind": type(error).__name__}
    return {"step": worker.trainer.step}


class _Worker:
    def __init__(self, record: RunRecord, settings: StoreSettings, submission: str) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.record = record
        self.submission = submission
        self.config: TrainingConfig = record.config
        self.store = ObjectStore(settings)
        self.dataset = DatasetVersion.open(self.store, record.dataset)
        self.trainer = Trainer(
            self.config,
            device=ray.train.torch.get_device(),
            distributed=self.world_size > 1,
            world_size=self.world_size,
        )
        self.position = PassPosition()
        self.history: list[dict[str, Any]] = []
        self.meter = Meter()
        self.device_meter = DeviceMeter(self.trainer.device)
        self.gauges = RunGauges(record.name, self.rank)
        self.validation_tiles = KeptTiles(self._read_validation_tiles, limit_bytes=_KEPT_VALIDATION_BYTES)
        self.steps_between_looks = 1
        self.reported = (time.monotonic(), 0)
        self.checkpoints_missed = 0
        self.secretary = ThreadPoolExecutor(max_workers=1, thread_name_prefix="refocus-record")
        self.writing: deque[Future[None]] = deque()
        self.preemption_seen = False

    def train(self, rows: ray.data.Dataset) -> None:
        """Run passes over the data until the last step."""
        config, trainer = self.config, self.trainer
        self._restore()
        feed = Feed(
            rows,
            config,
            tiles=self.dataset.manifest.rows("train", [config.modality]),
            batch_size=trainer.local_batch_size,
            rank=self.rank,
            world_size=self.world_size,
            shared=self._shared,
        )
        self.meter.restart()
        self.reported = (time.monotonic(), trainer.step)
        last_line = 0.0
        while not trainer.finished:
            for step in trainer.run(feed.batches(self.position), trained=self.position.add):
                self.meter.add(step)
                if time.monotonic() - last_line > _LINE_INTERVAL_S:
                    last_line = time.monotonic()
                    self._tell(step)
                if self._is_preempted(step) or trainer.finished or step.step % config.checkpoint_interval_steps == 0:
                    self._report(step)
            self.position.finish()
        for each in self.writing:
            each.result()

    def _tell(self, step: StepMetrics) -> None:
        interval = self.meter.interval()
        self.device_meter.sample()
        self.gauges.set({"step": step.step, "loss": interval.mean_loss, "gradient_norm": step.gradient_norm})
        if self.rank == 0:
            _say(progress_line(step, self.config.steps, interval, self.history, self.world_size))

    def _is_preempted(self, step: StepMetrics) -> bool:
        # All ranks ask together, at steps that rank 0 spaces by time: each answer costs a round trip.
        if step.step % self.steps_between_looks or self.preemption_seen:
            return False
        if ray.train.get_preemption_info() is None:
            return False
        self.preemption_seen = True
        if self.rank == 0:
            _say(f"step {step.step}: nodes are about to go; writing a checkpoint")
        return True

    def _report(self, step: StepMetrics) -> None:
        """Validate on all ranks and hand a checkpoint to Ray Train; a barrier for every rank."""
        started = time.monotonic()
        (since, first), self.reported = self.reported, (started, step.step)
        # Reports count: where they take longer than the steps between them, looks would be minutes apart.
        looks = max(1, round(_PREEMPTION_CHECK_S * (step.step - first) / max(started - since, 1e-6)))
        interval = Interval.from_tensor(self._summed(self.meter.interval().as_tensor()))
        validation = self._validate()
        validated = time.monotonic()
        entry = self._entry(step, interval, validation) | {"validation_s": validated - started}
        self.position.gather(rank=self.rank, world_size=self.world_size, device=self.trainer.device)
        checkpoint = self._checkpoint(entry) if self.rank == 0 else None
        looks, missed, name = self._shared((looks, self.checkpoints_missed, uuid.uuid4().hex[:6]))
        self.steps_between_looks, self.checkpoints_missed = looks, missed
        ray.train.report(
            {name: value for name, value in entry.items() if isinstance(value, (int, float))},
            checkpoint=checkpoint,
            # No earlier attempt at this step may have used the name.
            checkpoint_dir_name=f"step-{step.step:08d}-{name}",
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )
        entry["checkpoint_s"] = time.monotonic() - validated
        self.gauges.set(entry)
        if self.rank == 0:
            self._record(entry)
        self.meter.restart()
        if missed >= _CHECKPOINTS_MISSED_AT_MOST or (missed and self.trainer.finished):
            raise _StandsStillError(
                f"no checkpoint could be written in {tempfile.gettempdir()} at step {step.step} and the reports "
                f"before it ({missed} in a row); the job's log says why. Make room there, or set TMPDIR, and go on "
                "by --resume."
            )

    def _entry(self, step: StepMetrics, interval: Interval, validation: dict[str, float]) -> dict[str, Any]:
        return {
            "step": step.step,
            "epoch": self.position.number,
            "time": time.time(),
            "workers": self.world_size,
            "loss": interval.mean_loss,
            "samples_per_s": interval.samples_per_s,
            "data_wait_share": interval.data_wait_share,
            "gradient_norm": step.gradient_norm,
            "learning_rate": step.learning_rate,
            "batches_left_out": self.trainer.batches_left_out,
            **{f"loss_{name}": value for name, value in step.terms.items()},
            **self.device_meter.reading(),
            **{f"validation_{name}": value for name, value in validation.items()},
        }

    def _checkpoint(self, entry: dict[str, Any]) -> Checkpoint | None:
        """Write a checkpoint's folder, or return None and count where the disk does not take it."""
        self.history.append(entry)
        # The upload is asynchronous and removes the folder itself: no TemporaryDirectory here.
        folder = Path(tempfile.mkdtemp(prefix="refocus-checkpoint-"))
        try:
            package_of(self.trainer, self.record, entry).save(folder)
            state = {
                "trainer": self.trainer.state_dict(), "position": self.position.state_dict(), "history": self.history,
            }  # fmt: skip
            save_state(state, folder)
            metrics = {name: float(value) for name, value in entry.items() if name.startswith("validation_")}
            seal_folder(folder, step=self.trainer.step, metrics=metrics)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            self.checkpoints_missed += 1
            _say(f"WARNING: no checkpoint at step {self.trainer.step}: {error}; training goes on")
            return None
        self.checkpoints_missed = 0
        return Checkpoint.from_directory(str(folder))

    def _record(self, entry: dict[str, Any]) -> None:
        """Tell the person, and write the run's record beside training; a failure shows at the next report."""
        measured = ", ".join(
            f"{name.removeprefix('validation_')} {value:.4g}"
            for name, value in entry.items()
            if name.startswith("validation_") and name != "validation_s"
        )
        _say(f"report at step {entry['step']}: {measured}")
        while self.writing and self.writing[0].done():
            self.writing.popleft().result()
        self.writing.append(self.secretary.submit(self._write_record, list(self.history), self._examples()))

    def _write_record(self, history: list[dict[str, Any]], examples: torch.Tensor | None) -> None:
        entry = history[-1]
        write_progress(self.store, self.record.name, history)
        write_events(
            self.store, self.record.name, step=entry["step"], wall_time_s=entry["time"], scalars=entry,
            examples=examples,
        )  # fmt: skip

    def _examples(self) -> torch.Tensor | None:
        tiles = list(itertools.islice(self.validation_tiles, _EXAMPLES))
        return side_by_side(*self.trainer.examples(self._assembler().assemble(tiles))) if tiles else None

    def _validate(self) -> dict[str, float]:
        """Exact means over all validation tiles: every rank takes its share, the sums are added."""
        sums = self.trainer.validate(self._validation_batches())
        return ValidationSums.from_tensor(self._summed(sums.as_tensor())).means()

    def _validation_batches(self) -> Iterator[TileBatch]:
        assembler, tiles = self._assembler(), iter(self.validation_tiles)
        while group := list(itertools.islice(tiles, self.trainer.local_batch_size)):
            yield assembler.assemble(group)

    def _read_validation_tiles(self) -> Iterator[Tile]:
        return self.dataset.tiles_of("validation", self._validation_share, modalities=[self.config.modality])

    @cached_property
    def _validation_share(self) -> list[int]:
        """Indices of this rank's share of the tiles that are measured at each checkpoint; all ranks draw the same."""
        most, modality = self.config.validation_tiles, self.config.modality
        return self.dataset.draw("validation", most, modalities=[modality])[self.rank :: self.world_size]

    def _assembler(self) -> BatchAssembler:
        return BatchAssembler(
            window_px=self.config.window_px, channels=self.config.network.channels, seed=self.config.seed
        )

    def _restore(self) -> None:
        # Ray Train knows a checkpoint only after every rank has reported it; ours counts as soon as it is whole.
        checkpoints = whole_checkpoints(self.store, self.record.name) if self.rank == 0 else []
        newest = self._shared(checkpoints[-1] if checkpoints else None)
        self._stop_without_progress(0 if newest is None else newest.seal.step)
        if newest is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            state = load_state(fetch_checkpoint(self.store, newest, Path(folder)))
        self.trainer.load_state_dict(state["trainer"])
        self.position.load_state_dict(state["position"])
        self.history = state["history"]
        if self.rank == 0:
            _say(f"resumed at step {self.trainer.step} of {self.config.steps}")

    def _stop_without_progress(self, step: int) -> None:
        starts = 0
        if self.rank == 0:
            attempt = Attempt(submission=self.submission, started=now(), step=step, workers=self.world_size)
            attempts = add_attempt(self.store, self.record.name, attempt)
            starts = sum((a.submission, a.step) == (self.submission, step) for a in attempts)
        if (starts := self._shared(starts)) > _STARTS_WITHOUT_PROGRESS:
            raise _StandsStillError(
                f"workers failed {starts - 1} times after step {step} without reaching the next checkpoint; the "
                "job's log above has their errors."
            )

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks."""
        if self.world_size > 1:
            values = values.to(self.trainer.device)
            torch.distributed.all_reduce(values)
        return values.cpu()

    def _shared(self, value: _T) -> _T:
        """What rank 0 has, on every rank."""
        values = [value]
        if self.world_size > 1:
            torch.distributed.broadcast_object_list(values, src=0, device=self.trainer.device)
        return values[0]


def _say(text: str) -> None:
    # Past `print` as Ray Train replaces it on workers: that one says it twice, once by a logger.
    print(text, file=sys.__stdout__, flush=True)
