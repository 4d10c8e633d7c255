"""A training run on a Ray cluster: what is checked before any worker starts, and Ray Train around the loop."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from refocus.data.dataset import DatasetVersion
from refocus.errors import ConfigurationError, NonFiniteLoss, ResourcesMissing, TrainingError
from refocus.io.store import ObjectStore
from refocus.training.config import TrainingConfig
from refocus.training.runs import RUNS, RunRecord, SealedCheckpoint, best_checkpoint, claim_run, now
from refocus.training.worker import train_worker

_MAX_FAILURES = 3
_CHECKPOINTS_KEPT = 3
# Ray Data needs a CPU of its own beside the train workers, or both wait for ever.
_CPUS_FOR_DATA = 1


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one in this process."""
    if not ray.is_initialized():
        ray.init()


@dataclass(frozen=True, slots=True)
class Workers:
    """How many train workers, on what.

    Parameters
    ----------
    minimum, maximum : int
        Equal for a fixed number; Ray Train moves between them as nodes come and go.
    use_gpu : bool
    """

    minimum: int
    maximum: int
    use_gpu: bool

    @classmethod
    def parse(cls, text: str | None) -> Workers:
        """Read ``"4"``, ``"1:4"`` or None for one a GPU, or two CPU workers where the cluster has no GPU.

        Raises
        ------
        ConfigurationError
            If the text is neither.
        """
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if text is None:
            return cls(gpus, gpus, True) if gpus else cls(2, 2, False)
        low, _, high = text.partition(":")
        try:
            minimum, maximum = int(low), int(high or low)
        except ValueError:
            minimum, maximum = 0, 0
        if not 1 <= minimum <= maximum:
            raise ConfigurationError(
                f"--workers {text!r} is not understood; expected a number, or MIN:MAX such as 1:4."
            )
        return cls(minimum, maximum, gpus > 0)

    def check(self) -> None:
        """Raise `ResourcesMissing` at once if the cluster can never hold the smallest group."""
        have = ray.cluster_resources()
        cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
        missing = []
        if cpus < self.minimum + _CPUS_FOR_DATA:
            missing.append(f"{self.minimum + _CPUS_FOR_DATA} CPUs (it has {cpus})")
        if self.use_gpu and gpus < self.minimum:
            missing.append(f"{self.minimum} GPUs (it has {gpus})")
        if missing:
            fits = min(cpus - _CPUS_FOR_DATA, gpus if self.use_gpu else cpus)
            raise ResourcesMissing(
                f"{self.minimum} workers and Ray Data need {' and '.join(missing)}; "
                + (
                    f"--workers {fits} would fit."
                    if fits >= 1
                    else "start the cluster with more, such as --num-cpus=4."
                )
            )


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What a run left behind."""

    record: RunRecord
    steps: int
    best: SealedCheckpoint


def train(
    store: ObjectStore, config: TrainingConfig, *, dataset: str, run: str, workers: Workers, resume: bool = False
) -> FinishedRun:
    """Train `config` on a dataset version, or go on with a run that was interrupted.

    Raises
    ------
    DatasetMissing, DatasetIncomplete, RunExists, RunMissing, ResourcesMissing, ConfigurationError
        Before any worker starts.
    NonFiniteLoss
        If the loss became NaN; the checkpoints before it are kept.
    TrainingError
        If workers failed more often than is tried again.
    """
    version = DatasetVersion.open(store, dataset)
    rows = version.rows("train", modalities=[config.modality])
    version.rows("validation", modalities=[config.modality])
    workers.check()
    record = RunRecord(
        name=run, recipe=config.name, config=config, dataset=version.uri, created=now(), commit=_commit()
    )
    record = claim_run(store, record, resume=resume)
    worker: Any = train_worker
    group: Any = workers.minimum if workers.minimum == workers.maximum else (workers.minimum, workers.maximum)
    trainer = TorchTrainer(
        worker,
        train_loop_config={"record": record.model_dump_json(), "settings": store.settings},
        scaling_config=ScalingConfig(
            num_workers=group,
            use_gpu=workers.use_gpu,
        ),
        datasets={"train": rows.randomize_block_order(seed=config.seed)},
        dataset_config=DataConfig(datasets_to_split=["train"]),
        run_config=RunConfig(
            name=run,
            storage_path=f"{store.settings.bucket}/{RUNS}",
            storage_filesystem=store.settings.pyarrow_filesystem(),
            failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            checkpoint_config=CheckpointConfig(
                num_to_keep=_CHECKPOINTS_KEPT,
                checkpoint_score_attribute="validation_loss",
                checkpoint_score_order="min",
            ),
        ),
    )
    try:
        result: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"run {run!r} stopped: {error}\nGo on with it by --resume.") from error
    outcome = result.return_value or {}
    if failure := outcome.get("failure"):
        raise NonFiniteLoss(f"run {run!r}: {failure}")
    return FinishedRun(record, int(outcome.get("step", config.steps)), best_checkpoint(store, run))


def _commit() -> str | None:
    try:
        described = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
