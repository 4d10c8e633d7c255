"""The commands that the README gives, as a user types them: `ray job submit` and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid

import numpy as np
import pytest
import tifffile

from refocus.io.store import ObjectStore
from refocus.registry.catalog import Catalog
from refocus.training.runs import read_progress
from samples import put_sharp_images, sharp_image

pytestmark = [pytest.mark.store, pytest.mark.ray]

_SETTINGS = (
    "--set", "steps=4", "--set", "warmup_steps=1", "--set", "crop_px=64", "--set", "batch_size=2",
    "--set", "checkpoint_interval_steps=4", "--set", "validation_tiles=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def shared_store(store_settings) -> ObjectStore:
    return ObjectStore(store_settings)


@pytest.fixture(scope="module")
def dataset(shared_store) -> str:
    # As many specimens as intervals are fitted on, and no more: that is most of what promoting takes.
    return put_sharp_images(shared_store, name="default", each=5, side=200)


def test_a_run_is_submitted_and_promoted_on_any_cluster(cluster, dataset, shared_store):
    name = f"submitted-{uuid.uuid4().hex[:6]}"
    runtime_env = json.dumps({"env_vars": {"PYTHONPATH": "platform"}})
    submitted = cluster.run(
        "ray", "job", "submit", "--working-dir", ".", "--runtime-env-json", runtime_env, "--",
        "jobs/train.py", "--dataset", dataset, "--recipe", "smoke", "--run", name, *_SETTINGS,
        timeout_s=240, check=False,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stdout[-4000:]
    assert read_progress(shared_store, name)[-1]["step"] == 4

    promoted = cluster.run(
        "jobs/promote.py", "--run", name, "--quick", "--force", "--reason", "a test of promotion",
        timeout_s=240, check=False,
    )  # fmt: skip
    assert promoted.returncode == 0, promoted.stdout[-4000:]
    alias, _ = Catalog(shared_store).alias("fluorescence", "champion")
    assert alias.event.why == "a test of promotion"


def test_the_default_submission_trains_on_the_default_dataset(cluster, dataset):
    submitted = cluster.run("ray", "job", "submit", "--", "jobs/train.py", *_SETTINGS, timeout_s=240, check=False)
    assert submitted.returncode == 0, submitted.stdout[-4000:]
    assert "recipe smoke" in submitted.stdout


def test_a_submission_that_cannot_work_fails_with_its_reason(cluster, dataset):
    submitted = cluster.run(
        "ray", "job", "submit", "--", "jobs/train.py", "--recipe", "flourescence", timeout_s=120, check=False
    )
    assert submitted.returncode != 0
    assert "fluorescence" in submitted.stdout
    assert "Traceback" not in submitted.stdout


def test_a_folder_is_restored_and_a_bad_file_in_it_is_named(tmp_path):
    """`refocus restore` in a process of its own, with the bundled weights."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "in" / "a.tif", sharp_image(1, 80))
    tifffile.imwrite(tmp_path / "in" / "deep" / "b.tif", sharp_image(2, 70))
    (tmp_path / "in" / "notes.tif").write_text("not an image")
    # No store here: what ships with the package must do.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    run = subprocess.run(
        [sys.executable, "-m", "refocus.cli", "restore", "in", "out"],
        env={**environment, "REFOCUS_HOME": str(tmp_path / "home")}, cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert "notes.tif" in run.stdout
    assert "1 of 3" in run.stdout
    for name, side in (("a.tif", 80), ("deep/b.tif", 70)):
        restored = tifffile.imread(tmp_path / "out" / name)
        assert (restored.shape, restored.dtype) == ((side, side), np.uint16)
