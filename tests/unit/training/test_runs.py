"""Checkpoints of a run, in a store of this process: which of them count, and which is best."""

from __future__ import annotations

import json
import math

import pytest

from refocus.training.config import TrainingConfig
from refocus.training.runs import (
    RunRecord,
    best_checkpoint,
    claim_run,
    now,
    remove_partial_checkpoints,
    seal_folder,
    whole_checkpoints,
)


@pytest.fixture
def run(store) -> str:
    config = TrainingConfig(name="smoke")
    record = RunRecord(name="first", recipe="smoke", config=config, dataset="s3://b/datasets/d/v1", created=now())
    return claim_run(store, record, resume=False).name


def put_checkpoint(store, folder, step: int, **metrics: float) -> None:
    (folder / "weights.safetensors").write_bytes(b"w")
    seal_folder(folder, step=step, metrics=metrics)
    for file in folder.iterdir():
        store.put(f"runs/first/step-{step:08d}-a/{file.name}", file.read_bytes())


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_leaves_its_checkpoint_whole(store, run, tmp_path, loss):
    put_checkpoint(store, tmp_path, 10, validation_loss=loss, validation_psnr_db=30.0)
    assert remove_partial_checkpoints(store, run) == []
    (found,) = whole_checkpoints(store, run)
    assert math.isnan(found.seal.metrics["validation_loss"])
    assert found.seal.metrics["validation_psnr_db"] == 30.0


def test_a_checkpoint_whose_loss_is_not_finite_is_best_only_where_no_other_is(store, run, tmp_path):
    put_checkpoint(store, tmp_path, 10, validation_loss=math.nan)
    put_checkpoint(store, tmp_path, 30, validation_loss=math.nan)
    assert best_checkpoint(store, run).seal.step == 30
    put_checkpoint(store, tmp_path, 20, validation_loss=0.5)
    assert best_checkpoint(store, run).seal.step == 20


@pytest.mark.parametrize("name", ["../../.bashrc", "/etc/profile", "sub/file", "..", ".profile"])
def test_a_seal_that_names_a_file_elsewhere_is_none(store, run, name):
    seal = {"step": 10, "metrics": {}, "files": {name: "0" * 64}}
    store.put("runs/first/step-00000010-a/checkpoint.json", json.dumps(seal).encode())
    store.put(f"runs/first/step-00000010-a/{name}", b"w")
    assert whole_checkpoints(store, run) == []
