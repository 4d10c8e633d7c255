"""Training runs in the object store: their record, their progress and their checkpoints.

::

    runs/NAME/run.json                  what the run is; created once, never changed
    runs/NAME/progress.json             one entry a report: step, losses, speeds
    runs/NAME/attempts.json             one entry a start of the workers: when, from which step, how many
    runs/NAME/tensorboard/...           scalars and example images, one event file a report
    runs/NAME/step-00001000-ab12cd/...  a checkpoint; whole only with its checkpoint.json, which names every file

Names are taken with a conditional create, so two runs never write into each other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from refocus.data.manifest import checked_name
from refocus.errors import (
    ConfigurationError,
    ModelCorrupt,
    ObjectExists,
    ObjectMissing,
    RunExists,
    RunMissing,
    StoreAccessDenied,
)
from refocus.io.store import ObjectStore
from refocus.training.config import TrainingConfig

_log = logging.getLogger(__name__)

RUNS = "runs"
SEAL = "checkpoint.json"


#: Of a file beside the seal: a checkpoint is fetched into a folder, and must not be written anywhere else.
FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunRecord(_Record):
    """What a run is: enough to resume it and to say where its weights come from."""

    name: str
    recipe: str
    config: TrainingConfig
    dataset: str
    created: AwareDatetime
    commit: str | None = None


class CheckpointSeal(_Record):
    """Written last into a checkpoint's folder: every file with its digest, so that half a checkpoint shows.

    A metric that is not finite is null in JSON, which has no other word for it, and NaN again when it is read.
    """

    step: int
    metrics: dict[str, Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]]
    files: dict[FileName, str]


class SealedCheckpoint(_Record):
    """A whole checkpoint in the store."""

    key: str
    seal: CheckpointSeal


class Attempt(_Record):
    """One start of a run's workers: at its submission, after a failure, or for another number of them.

    Parameters
    ----------
    submission : str
        The same for all attempts of one submission.
    started : datetime
    step : int
        Of the checkpoint that it went on from.
    workers : int
    """

    submission: str
    started: AwareDatetime
    step: int
    workers: int


_ATTEMPTS = TypeAdapter(tuple[Attempt, ...])


def run_prefix(name: str) -> str:
    """Return the key prefix of a run, with a trailing slash."""
    return f"{RUNS}/{checked_name(name, 'run name')}/"


def claim_run(store: ObjectStore, record: RunRecord, *, resume: bool) -> RunRecord:
    """Take a new run name, or return the record of the run that is resumed.

    Raises
    ------
    RunExists
        If the name is taken and `resume` is false.
    RunMissing
        If `resume` is true and there is no such run.
    ConfigurationError
        If the run that would be resumed was started with another configuration or dataset.
    """
    key = run_prefix(record.name) + "run.json"
    if not resume:
        try:
            store.create(key, record.model_dump_json(indent=1).encode())
        except ObjectExists:
            raise RunExists(
                f"run {record.name!r} exists in {store.uri(run_prefix(record.name))}; "
                "choose another --run, or go on with it by --resume."
            ) from None
        return record
    begun = read_run(store, record.name)
    if (begun.config, begun.dataset) != (record.config, record.dataset):
        changed = _differences(begun, record)
        raise ConfigurationError(
            f"run {record.name!r} was started differently: {changed}. Resume it with what it was started with, "
            "or start another --run."
        )
    return begun


def read_run(store: ObjectStore, name: str) -> RunRecord:
    """Return a run's record.

    Raises
    ------
    RunMissing
    """
    try:
        data = store.get(run_prefix(name) + "run.json")
    except ObjectMissing:
        there = sorted(run_names(store))
        raise RunMissing(
            f"there is no run {name!r} in {store.uri(RUNS)}; there is: {', '.join(there[-10:]) or 'none yet'}."
        ) from None
    return RunRecord.model_validate_json(data)


def run_names(store: ObjectStore) -> Iterator[str]:
    """Yield the names of all runs."""
    for entry in store.list(RUNS + "/"):
        if entry.key.count("/") == 2 and entry.key.endswith("/run.json"):
            yield entry.key.split("/")[1]


def write_progress(store: ObjectStore, name: str, history: list[dict[str, Any]]) -> None:
    """Replace the run's progress; small, and written by rank 0 alone."""
    store.put(run_prefix(name) + "progress.json", json.dumps(history).encode())


def read_progress(store: ObjectStore, name: str) -> list[dict[str, Any]]:
    """Return the run's progress so far, one entry a report."""
    try:
        return json.loads(store.get(run_prefix(name) + "progress.json"))
    except ObjectMissing:
        return []


def read_attempts(store: ObjectStore, name: str) -> tuple[Attempt, ...]:
    """Return the starts of a run's workers, oldest first."""
    try:
        return _ATTEMPTS.validate_json(store.get(run_prefix(name) + "attempts.json"))
    except ObjectMissing:
        return ()


def add_attempt(store: ObjectStore, name: str, attempt: Attempt) -> tuple[Attempt, ...]:
    """Note one more start and return all; written by rank 0 alone."""
    attempts = (*read_attempts(store, name), attempt)
    store.put(run_prefix(name) + "attempts.json", _ATTEMPTS.dump_json(attempts))
    return attempts


def seal_folder(folder: Path, *, step: int, metrics: dict[str, float]) -> None:
    """Write the seal of a checkpoint that lies complete in `folder`."""
    files = {path.name: _digest(path.read_bytes()) for path in sorted(folder.iterdir()) if path.name != SEAL}
    seal = CheckpointSeal(step=step, metrics=metrics, files=files)
    (folder / SEAL).write_text(seal.model_dump_json(indent=1))


def whole_checkpoints(store: ObjectStore, name: str) -> list[SealedCheckpoint]:
    """Return the run's checkpoints whose files are all there, oldest first."""
    entries = {entry.key for entry in store.list(run_prefix(name))}
    whole = []
    for key in sorted(entry for entry in entries if entry.endswith("/" + SEAL)):
        folder = key.removesuffix(SEAL)
        try:
            seal = CheckpointSeal.model_validate_json(store.get(key))
        except ValidationError:
            continue  # A seal cut short by a crash is no seal: the checkpoint does not count.
        if all(folder + file in entries for file in seal.files):
            whole.append(SealedCheckpoint(key=folder, seal=seal))
    return sorted(whole, key=lambda checkpoint: checkpoint.seal.step)


def remove_partial_checkpoints(store: ObjectStore, name: str) -> list[str]:
    """Delete what uploads that broke off have left, and return the folders; only while no worker of the run lives."""
    whole = tuple(checkpoint.key for checkpoint in whole_checkpoints(store, name))
    partial = set()
    for entry in list(store.list(run_prefix(name) + "step-")):
        if not entry.key.startswith(whole):
            store.delete(entry.key)
            partial.add(entry.key.rpartition("/")[0] + "/")
    try:
        partial.update(key.rpartition("/")[0] + "/" for key in store.abandon_uploads(run_prefix(name) + "step-"))
    except StoreAccessDenied as error:
        _log.warning("uploads that broke off may take space unseen, and cannot be looked for: %s", error)
    return sorted(partial)


def best_checkpoint(store: ObjectStore, name: str, metric: str = "validation_loss") -> SealedCheckpoint:
    """Return the whole checkpoint with the lowest `metric`, the last one where none has a finite one.

    Raises
    ------
    RunMissing
        If the run does not exist or has no whole checkpoint.
    """
    read_run(store, name)
    checkpoints = whole_checkpoints(store, name)
    if not checkpoints:
        raise RunMissing(f"run {name!r} has no complete checkpoint yet; wait for its first, or look at its job's log.")
    measured = [c for c in checkpoints if math.isfinite(c.seal.metrics.get(metric, math.nan))]
    return min(measured, key=lambda c: c.seal.metrics[metric]) if measured else checkpoints[-1]


def fetch_checkpoint(store: ObjectStore, checkpoint: SealedCheckpoint, folder: Path) -> Path:
    """Download a checkpoint into `folder`, each file checked against the seal.

    Raises
    ------
    ModelCorrupt
        If a file is not what the seal names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in checkpoint.seal.files.items():
        data = store.get(checkpoint.key + name)
        if _digest(data) != digest:
            raise ModelCorrupt(f"{store.uri(checkpoint.key + name)} is not what its checkpoint was sealed with.")
        (folder / name).write_bytes(data)
    return folder


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _differences(begun: RunRecord, asked: RunRecord) -> str:
    pairs: list[tuple[str, Any, Any]] = [("dataset", begun.dataset, asked.dataset)]
    old, new = begun.config.model_dump(), asked.config.model_dump()
    pairs += [(name, old[name], new.get(name)) for name in old]
    return ", ".join(f"{name} was {was!r}, now {now!r}" for name, was, now in pairs if was != now)
