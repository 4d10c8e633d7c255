"""From a run's checkpoint to champion, on small datasets in a store of this process."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from refocus.errors import PromotionRefused
from refocus.model.abstain import RangeGate
from refocus.registry.catalog import Catalog
from refocus.testing.service import tiny_package
from refocus.training.config import TrainingConfig
from refocus.training.runs import RunRecord, claim_run, now, seal_folder
from refocus.workflows.promote import promote
from samples import put_focal_series, put_sharp_images


@pytest.fixture
def store(store, monkeypatch):
    """The store, where commands find it: in the environment."""
    for name, value in store.settings.environment().items():
        monkeypatch.setenv(name, value)
    return store


def trained(store, dataset: str, folder) -> str:
    """Leave the record and the checkpoint of a run, with the range of the recipes."""
    config = TrainingConfig(name="smoke")
    record = RunRecord(name="first", recipe="smoke", config=config, dataset=dataset, created=now())
    claim_run(store, record, resume=False)
    made = tiny_package(1, name="fluorescence")
    dataclasses.replace(made, config=made.config.model_copy(update={"largest_blur_px": 38.0})).save(folder)
    seal_folder(folder, step=10, metrics={"validation_loss": 0.5})
    for file in folder.iterdir():
        store.put(f"runs/first/step-00000010-a/{file.name}", file.read_bytes())
    return record.name


def promoted(run: str, *, policy: str = "default", force: bool = False, said: io.StringIO | None = None):
    return promote(
        run=run, policy=policy, alias="champion", quick=True, force=force, reason="a test",
        console=Console(file=said or io.StringIO(), width=500),
    )  # fmt: skip


def test_z_stacks_alone_are_published_uncalibrated_and_refused_for_it(store, tmp_path):
    run = trained(store, put_focal_series(store, name="stacks"), tmp_path)
    said = io.StringIO()
    with pytest.raises(PromotionRefused, match="coverage: not measured"):
        promoted(run, said=said)
    assert "stacks/v1 has 0 specimens with sharp images of fluorescence" in said.getvalue()
    (published,) = Catalog(store).versions("fluorescence")
    with pytest.raises(PromotionRefused) as refusal:
        promoted(run, policy="quickstart")
    # It is not better than the input, untrained as it is; of coverage nothing is said.
    assert all("coverage" not in reason for reason in refusal.value.reasons)
    assert Catalog(store).versions("fluorescence") == [published]


def test_a_trained_champion_has_intervals_and_the_shipped_gate(store, tmp_path):
    run = trained(store, put_sharp_images(store, name="images", each=5, side=192), tmp_path)
    made = promoted(run, force=True)
    package = Catalog(store).load("fluorescence", made.version.digest)
    assert package.config.calibration.specimens == 5
    assert package.config.gate == RangeGate.shipped()
