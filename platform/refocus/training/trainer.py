"""A training run on a Ray cluster: what is checked before any worker starts, and Ray Train around the loop."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.autoscaler.sdk import request_resources
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from refocus.data.dataset import DatasetVersion
from refocus.errors import ConfigurationError, DatasetIncomplete, NonFiniteLoss, ResourcesMissing, TrainingError
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.training.config import TrainingConfig
from refocus.training.evaluate import commit
from refocus.training.feed import TRAIN, training_rows
from refocus.training.loop import initial_network
from refocus.training.runs import (
    RUNS,
    RunRecord,
    SealedCheckpoint,
    best_checkpoint,
    claim_run,
    now,
    remove_partial_checkpoints,
)
from refocus.training.worker import train_worker

# Workers themselves end a run that fails again and again without a step forward; a run of weeks may lose many.
_MAX_FAILURES = 20
_CHECKPOINTS_KEPT = 3
#: How long a run waits for the resources that it asks for, where no other time is given.
PATIENCE_FOR_RESOURCES_S = 45.0
# About four minutes of back-off: a store that is restarted or throttles is waited for, not died of.
_PATIENT_ATTEMPTS = 30
_RESOURCES_POLL_S = 1.0


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

    def wait_for_resources(self, timeout_s: float, *, say: Callable[[str], object] = print) -> None:
        """Wait until the cluster has room for the smallest group; one that scales by itself is asked for it.

        Raises
        ------
        ResourcesMissing
            If there is not room in time.
        """
        deadline = time.monotonic() + timeout_s
        asked = False
        try:
            while missing := self._missing(ray.available_resources()):
                if time.monotonic() >= deadline:
                    raise ResourcesMissing(self._refusal(missing, timeout_s))
                if not asked:
                    asked = True
                    say(f"Waiting up to {timeout_s:.0f} s for {' and '.join(missing)} ...")
                    request_resources(bundles=self._bundles())
                time.sleep(_RESOURCES_POLL_S)
        finally:
            if asked:
                request_resources(bundles=[])

    def _bundles(self) -> list[dict[str, float]]:
        each = {"CPU": 1.0, "GPU": 1.0} if self.use_gpu else {"CPU": 1.0}
        return [each] * self.minimum

    def _missing(self, have: dict[str, float]) -> list[str]:
        cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
        missing = []
        if cpus < self.minimum:
            missing.append(f"{self.minimum} CPUs ({cpus} are free)")
        if self.use_gpu and gpus < self.minimum:
            missing.append(f"{self.minimum} GPUs ({gpus} are free)")
        return missing

    def _refusal(self, missing: list[str], waited_s: float) -> str:
        have, free = ray.cluster_resources(), ray.available_resources()
        cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
        fits = int(min(free.get("CPU", 0), free.get("GPU", 0) if self.use_gpu else math.inf))
        return (
            f"{self.minimum} workers need {' and '.join(missing)}; the cluster has {cpus} CPUs"
            f"{f' and {gpus} GPUs' if self.use_gpu else ''} in all, and {waited_s:.0f} s of waiting brought no more. "
            + (
                f"--workers {fits} would fit now."
                if fits >= 1
                else "Start it with more, such as --num-cpus=4, or wait."
            )
        )


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What a run left behind."""

    record: RunRecord
    steps: int
    best: SealedCheckpoint


def train(
    store: ObjectStore,
    config: TrainingConfig,
    *,
    dataset: str,
    run: str,
    workers: Workers,
    resume: bool = False,
    patience_for_resources_s: float = PATIENCE_FOR_RESOURCES_S,
) -> FinishedRun:
    """Train `config` on a dataset version, or go on with a run that was interrupted.

    Raises
    ------
    DatasetMissing, DatasetIncomplete, ModelMissing, ModelUnfit, ResourcesMissing, RunExists, RunMissing
    ConfigurationError, StoreAccessDenied
        Before any worker starts.
    NonFiniteLoss
        If the gradient stayed NaN or infinite; the checkpoints before it are kept.
    TrainingError
        If workers failed again and again without a step forward.
    """
    version = DatasetVersion.open(store, dataset)
    _check_fit(config, version, workers)
    workers.wait_for_resources(patience_for_resources_s)
    record = RunRecord(name=run, recipe=config.name, config=config, dataset=version.uri, created=now(), commit=commit())
    record = claim_run(store, record, resume=resume)
    remove_partial_checkpoints(store, run)
    try:
        result: Any = _torch_trainer(store.settings, version, record, workers).fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"run {run!r} stopped: {error}\nGo on with it by --resume.") from error
    finally:
        remove_partial_checkpoints(store, run)
    outcome = result.return_value or {}
    if failure := outcome.get("failure"):
        kind = NonFiniteLoss if outcome["kind"] == NonFiniteLoss.__name__ else TrainingError
        raise kind(f"run {run!r}: {failure}")
    return FinishedRun(record, int(outcome.get("step", config.steps)), best_checkpoint(store, run))


def _check_fit(config: TrainingConfig, version: DatasetVersion, workers: Workers) -> None:
    """What would fail on every worker fails here, once and before any of them starts."""
    for split in ("train", "validation"):
        version.keys(split, modalities=[config.modality])
    tiles = version.manifest.rows("train", [config.modality])
    if tiles < (needed := max(config.batch_size, workers.maximum)):
        raise DatasetIncomplete(
            f"{version.uri} has {tiles} training tiles of {config.modality} and a step takes {needed}; ingest more, or "
            "lower batch_size or --workers."
        )
    initial_network(config)


def _torch_trainer(
    settings: StoreSettings, version: DatasetVersion, record: RunRecord, workers: Workers
) -> TorchTrainer:
    patient = settings.model_copy(update={"attempts": max(settings.attempts, _PATIENT_ATTEMPTS)})
    rows = training_rows(DatasetVersion(ObjectStore(patient), version.manifest), record.config)
    worker: Any = train_worker
    group: Any = workers.minimum if workers.minimum == workers.maximum else (workers.minimum, workers.maximum)
    return TorchTrainer(
        worker,
        train_loop_config={
            "record": record.model_dump_json(), "settings": patient, "rows": rows, "submission": uuid.uuid4().hex,
        },
        scaling_config=ScalingConfig(num_workers=group, use_gpu=workers.use_gpu),
        datasets={TRAIN: rows},
        dataset_config=DataConfig(datasets_to_split=[TRAIN]),
        run_config=RunConfig(
            name=record.name,
            storage_path=f"{patient.bucket}/{RUNS}",
            storage_filesystem=patient.pyarrow_filesystem(),
            failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            checkpoint_config=CheckpointConfig(
                num_to_keep=_CHECKPOINTS_KEPT,
                checkpoint_score_attribute="validation_loss",
                checkpoint_score_order="min",
            ),
        ),
    )  # fmt: skip
