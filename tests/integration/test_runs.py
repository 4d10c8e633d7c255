"""Run records and checkpoints against a real store."""

import pytest

from refocus.errors import ConfigurationError, ModelCorrupt, RunExists, RunMissing
from refocus.training.config import TrainingConfig
from refocus.training.runs import (
    RunRecord,
    best_checkpoint,
    claim_run,
    fetch_checkpoint,
    now,
    read_progress,
    run_names,
    seal_folder,
    whole_checkpoints,
    write_progress,
)

pytestmark = pytest.mark.store


def record(name: str = "first", **changes) -> RunRecord:
    fields = {
        "name": name, "recipe": "smoke", "config": TrainingConfig(name="smoke"), "dataset": "s3://b/datasets/d/v1",
        "created": now(),
    }  # fmt: skip
    return RunRecord(**(fields | changes))


def put_checkpoint(store, tmp_path, step: int, loss: float, run: str = "first") -> str:
    folder = tmp_path / f"{step}"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(bytes([step % 256]) * 100)
    seal_folder(folder, step=step, metrics={"validation_loss": loss})
    prefix = f"runs/{run}/step-{step:08d}/"
    for file in folder.iterdir():
        store.put(prefix + file.name, file.read_bytes())
    return prefix


def test_a_run_name_is_taken_once(store):
    claim_run(store, record(), resume=False)
    with pytest.raises(RunExists, match="--resume"):
        claim_run(store, record(), resume=False)
    assert list(run_names(store)) == ["first"]


def test_resuming_needs_the_run_and_its_own_configuration(store):
    with pytest.raises(RunMissing, match="none yet"):
        claim_run(store, record(), resume=True)
    begun = claim_run(store, record(), resume=False)
    assert claim_run(store, record(), resume=True) == begun
    with pytest.raises(ConfigurationError, match="steps was 20000, now 10"):
        claim_run(store, record(config=TrainingConfig(name="smoke", steps=10, warmup_steps=0)), resume=True)


def test_the_best_checkpoint_is_the_one_with_the_lowest_validation_loss(store, tmp_path):
    claim_run(store, record(), resume=False)
    for step, loss in ((10, 0.5), (20, 0.2), (30, 0.4)):
        put_checkpoint(store, tmp_path, step, loss)
    assert best_checkpoint(store, "first").seal.step == 20


def test_half_a_checkpoint_does_not_count(store, tmp_path):
    claim_run(store, record(), resume=False)
    put_checkpoint(store, tmp_path, 10, 0.5)
    store.delete(put_checkpoint(store, tmp_path, 20, 0.1) + "weights.safetensors")
    store.delete(put_checkpoint(store, tmp_path, 30, 0.1) + "checkpoint.json")
    assert [checkpoint.seal.step for checkpoint in whole_checkpoints(store, "first")] == [10]


def test_a_run_without_a_checkpoint_says_so(store):
    claim_run(store, record(), resume=False)
    with pytest.raises(RunMissing, match="no complete checkpoint"):
        best_checkpoint(store, "first")


def test_a_fetched_checkpoint_is_checked_against_its_seal(store, tmp_path):
    claim_run(store, record(), resume=False)
    prefix = put_checkpoint(store, tmp_path, 10, 0.5)
    folder = fetch_checkpoint(store, best_checkpoint(store, "first"), tmp_path / "fetched")
    assert (folder / "weights.safetensors").read_bytes() == bytes([10]) * 100
    store.put(prefix + "weights.safetensors", b"something else")
    with pytest.raises(ModelCorrupt, match="sealed"):
        fetch_checkpoint(store, best_checkpoint(store, "first"), tmp_path / "again")


def test_progress_is_read_back(store):
    assert read_progress(store, "first") == []
    write_progress(store, "first", [{"step": 1, "loss": 0.5}])
    assert read_progress(store, "first") == [{"step": 1, "loss": 0.5}]
