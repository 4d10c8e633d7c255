"""Training as users start it: real processes on the session's cluster, real store, two DDP workers."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
import uuid

import pytest

from refocus.errors import (
    ConfigurationError,
    DatasetIncomplete,
    DatasetMissing,
    ModelMissing,
    ModelUnfit,
    ResourcesMissing,
    RunExists,
    StoreAccessDenied,
)
from refocus.io.store import ObjectStore
from refocus.model.checkpoint import ModelPackage
from refocus.testing.faulty_store import Fault, FaultyStore
from refocus.training.runs import best_checkpoint, fetch_checkpoint, read_progress, run_names, whole_checkpoints
from samples import put_sharp_images

pytestmark = [pytest.mark.store, pytest.mark.ray]

_TINY = (
    "--set", "crop_px=64", "--set", "batch_size=4", "--set", "warmup_steps=1", "--set", "validation_tiles=3",
    "--set", "checkpoint_interval_steps=4", "--set", "initial_weights=null",
    "--set", "network={widths: [8, 12], encoder_blocks: [1], decoder_blocks: [1], middle_blocks: 1}",
)  # fmt: skip


@pytest.fixture(scope="module")
def shared_store(store_settings) -> ObjectStore:
    return ObjectStore(store_settings)


@pytest.fixture(scope="module")
def dataset(shared_store) -> str:
    return put_sharp_images(shared_store, name=f"training-{uuid.uuid4().hex[:6]}")


def train(cluster, *arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    return cluster.run("jobs/train.py", *arguments, timeout_s=timeout_s, check=False)


@pytest.fixture(scope="module")
def finished_run(cluster, dataset) -> str:
    name = f"done-{uuid.uuid4().hex[:6]}"
    run = train(cluster, "--recipe", "smoke", "--dataset", dataset, "--run", name, "--set", "steps=8", *_TINY)
    assert run.returncode == 0, run.stdout[-4000:]
    assert run.stdout.count("report at step 8:") == 1
    return name


def test_a_run_ends_with_its_steps_and_a_package_that_can_be_served(finished_run, shared_store, tmp_path):
    assert [entry["step"] for entry in read_progress(shared_store, finished_run)] == [4, 8]
    checkpoint = best_checkpoint(shared_store, finished_run)
    package = ModelPackage.load(fetch_checkpoint(shared_store, checkpoint, tmp_path))
    assert package.config.network.widths == (8, 12)
    assert package.card["run"] == finished_run
    assert package.card["steps"] == 8


def test_progress_says_what_an_engineer_asks(finished_run, shared_store):
    last = read_progress(shared_store, finished_run)[-1]
    assert {
        "loss", "samples_per_s", "data_wait_share", "gradient_norm", "validation_psnr_db", "device_utilisation",
        "device_memory_gb", "checkpoint_s", "validation_s", "workers", "batches_left_out",
    } <= set(last)  # fmt: skip
    assert 0 <= last["data_wait_share"] <= 1


def test_a_runs_numbers_are_among_rays_metrics(cluster, ray_session):
    from refocus.training.gauges import RunGauges

    RunGauges("measured-run", rank=1).set({"samples_per_s": 12.5, "unknown": 1.0})
    addresses = json.loads((cluster.folder / "prom_metrics_service_discovery.json").read_text())[0]["targets"]
    wanted = re.compile(r'^ray_refocus_training_samples_per_s\{.*rank="1",run="measured-run".*\} 12\.5$', re.MULTILINE)
    deadline = time.monotonic() + 60  # Ray gathers metrics every ten seconds
    while not any(wanted.search(urllib.request.urlopen(f"http://{a}/metrics").read().decode()) for a in addresses):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_run_can_be_read_back_by_people(cluster, finished_run, shared_store):
    events = [entry.key for entry in shared_store.list(f"runs/{finished_run}/tensorboard/")]
    assert [key.rpartition(".")[2] for key in events] == ["0000000004", "0000000008"]
    shown = cluster.run("refocus", "runs", "show", finished_run, timeout_s=60).stdout
    assert "tensorboard --logdir s3://" in shown
    assert "2 workers from step 0" in shown


def test_a_run_name_is_not_reused_without_resume(cluster, finished_run, dataset):
    run = train(cluster, "--dataset", dataset, "--run", finished_run, "--set", "steps=8", *_TINY)
    assert run.returncode == 1
    assert "RunExists" in run.stdout
    assert "--resume" in run.stdout


def test_a_killed_driver_loses_at_most_one_checkpoint_interval(cluster, dataset, shared_store):
    name = f"killed-{uuid.uuid4().hex[:6]}"
    arguments = ("--recipe", "smoke", "--dataset", dataset, "--run", name, "--set", "steps=24", *_TINY)
    driver = subprocess.Popen(
        ["jobs/train.py", *arguments], cwd=cluster.working_directory, env=cluster.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while not whole_checkpoints(shared_store, name):
            assert driver.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "no checkpoint within three minutes"
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    reached = whole_checkpoints(shared_store, name)[-1].seal.step
    resumed = train(cluster, *arguments, "--resume")
    assert resumed.returncode == 0, resumed.stdout[-4000:]
    assert whole_checkpoints(shared_store, name)[-1].seal.step == 24
    steps = [entry["step"] for entry in read_progress(shared_store, name)]
    assert steps == sorted(set(steps))
    # A run that had begun again from nothing would be in its first epoch still.
    epochs = {entry["step"]: entry["epoch"] for entry in read_progress(shared_store, name)}
    assert reached < 24
    assert epochs[24] >= 1


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("--set", "step=5"), "ConfigurationError", "steps"),
        (("--dataset", "nothing/v1"), "DatasetMissing", "jobs/ingest.py"),
    ],
)
def test_bad_arguments_end_at_once_with_one_message(cluster, dataset, arguments, error, said):
    defaults = () if "--dataset" in arguments else ("--dataset", dataset)
    run = train(cluster, *defaults, *arguments, timeout_s=60)
    assert run.returncode == 1
    assert error in run.stdout
    assert said in run.stdout
    assert "Traceback" not in run.stdout


def test_a_job_that_asks_for_more_than_there_is_fails_soon_and_ray_says_so(cluster, dataset):
    job = f"too-large-{uuid.uuid4().hex[:6]}"
    started = time.monotonic()
    submitted = cluster.run(
        "ray", "job", "submit", "--submission-id", job, "--", "jobs/train.py", "--dataset", dataset, "--workers", "6",
        "--wait", "3", timeout_s=180, check=False,
    )  # fmt: skip
    took_s = time.monotonic() - started
    assert submitted.returncode != 0
    assert "ResourcesMissing: 6 workers need 6 CPUs" in submitted.stdout
    assert "--workers 5 would fit now" in submitted.stdout
    status = cluster.run("ray", "job", "status", job, timeout_s=60).stdout
    assert f"Job '{job}' failed" in status
    # 3 s of waiting, and the start of two commands on a machine that may be busy.
    assert took_s < 60


class TestBeforeWorkersStart:
    """Checks in this process: what cannot work is said before a worker starts."""

    def test_too_few_cpus_say_what_would_fit(self, ray_session):
        from refocus.training.trainer import Workers

        with pytest.raises(ResourcesMissing, match=r"40 CPUs .5 are free.* has 5 CPUs in all.*--workers 5 would fit"):
            Workers(40, 40, use_gpu=False).wait_for_resources(0)
        with pytest.raises(ResourcesMissing, match=r"1 GPUs .0 are free"):
            Workers(1, 1, use_gpu=True).wait_for_resources(0)

    def test_processors_that_come_free_are_waited_for(self, ray_session):
        from refocus.training.trainer import Workers

        @ray_session.remote(num_cpus=4)
        def busy(seconds: float) -> None:
            time.sleep(seconds)

        task = busy.remote(3)
        said: list[str] = []
        while ray_session.available_resources().get("CPU", 0) > 1:
            time.sleep(0.1)
        with pytest.raises(ResourcesMissing, match="--workers 1 would fit now"):
            Workers(3, 3, use_gpu=False).wait_for_resources(0)
        Workers(3, 3, use_gpu=False).wait_for_resources(60, say=said.append)
        assert said == ["Waiting up to 60 s for 3 CPUs (1 are free) ..."]
        ray_session.get(task)

    @pytest.mark.parametrize(("text", "expected"), [(None, (2, 2)), ("3", (3, 3)), ("1:3", (1, 3))])
    def test_workers_are_read_from_their_flag(self, ray_session, text, expected):
        from refocus.training.trainer import Workers

        workers = Workers.parse(text)
        assert (workers.minimum, workers.maximum) == expected
        for wrong in ("3:1", "many"):
            with pytest.raises(ConfigurationError, match="MIN:MAX"):
                Workers.parse(wrong)

    def test_a_modality_that_the_dataset_lacks_is_named(self, ray_session, shared_store, dataset):
        from refocus import recipes
        from refocus.training.trainer import Workers, train

        config = recipes.get("smoke").model_copy(update={"modality": "phase_contrast"})
        with pytest.raises(DatasetIncomplete, match="phase_contrast; it has fluorescence"):
            train(shared_store, config, dataset=dataset, run="never", workers=Workers(1, 1, use_gpu=False))

    @pytest.mark.parametrize(
        ("changes", "error", "said"),
        [
            (("network.channels=2",), ConfigurationError, "Input should be 1 or 3"),
            (("batch_size=64",), DatasetIncomplete, "has 6 training tiles of fluorescence and a step takes 64"),
            (("network.widths=[8, 12, 16, 20]",), ModelUnfit, "Take the network from the package"),
            (("initial_weights=/no/such/folder",), ModelMissing, "/no/such/folder"),
        ],
        ids=["channels", "batch", "weights-of-another-network", "weights-that-are-not-there"],
    )
    def test_what_does_not_fit_is_said_before_a_run_name_is_taken(
        self, ray_session, shared_store, dataset, changes, error, said
    ):
        from refocus import recipes
        from refocus.training.overrides import with_overrides
        from refocus.training.trainer import Workers, train

        def start() -> None:
            config = with_overrides(recipes.get("smoke"), changes)
            train(shared_store, config, dataset=dataset, run="misfit", workers=Workers(1, 1, use_gpu=False))

        with pytest.raises(error, match=re.escape(said)):
            start()
        assert "misfit" not in set(run_names(shared_store))

    def test_an_unfinished_dataset_version_is_named(self, ray_session, shared_store):
        from refocus import recipes
        from refocus.training.trainer import Workers, train

        shared_store.put("datasets/unfinished/v1/plan.json", b"{}")
        with pytest.raises(DatasetIncomplete, match="ingest has not finished"):
            train(
                shared_store, recipes.get("smoke"), dataset="unfinished/v1", run="never",
                workers=Workers(1, 1, use_gpu=False),
            )  # fmt: skip

    def test_a_bucket_that_may_not_be_written_is_named(self, ray_session, shared_store, dataset):
        from refocus import recipes
        from refocus.training.trainer import Workers, train

        with FaultyStore(shared_store.settings) as faulty:
            faulty.inject(Fault(status=403, code="AccessDenied"), times=None, methods=("PUT", "POST"))
            with pytest.raises(StoreAccessDenied, match="what they may do in this bucket"):
                train(
                    ObjectStore(faulty.settings), recipes.get("smoke"), dataset=dataset, run="forbidden",
                    workers=Workers(1, 1, use_gpu=False),
                )  # fmt: skip

    def test_a_run_is_not_gone_on_with_by_another_network(self, ray_session, shared_store, dataset, finished_run):
        from refocus.training.overrides import with_overrides
        from refocus.training.runs import read_run
        from refocus.training.trainer import Workers, train

        config = with_overrides(read_run(shared_store, finished_run).config, ["network.widths=[8, 16]"])
        with pytest.raises(ConfigurationError, match="was started differently: network was"):
            train(
                shared_store, config, dataset=dataset, run=finished_run, resume=True,
                workers=Workers(1, 1, use_gpu=False),
            )  # fmt: skip

    def test_a_dataset_that_is_not_there_is_named(self, ray_session, shared_store):
        from refocus import recipes
        from refocus.training.trainer import Workers, train

        with pytest.raises(DatasetMissing):
            train(shared_store, recipes.get("smoke"), dataset="none", run="never", workers=Workers(1, 1, use_gpu=False))

    def test_a_taken_run_name_is_refused(self, ray_session, shared_store, dataset, finished_run):
        from refocus import recipes
        from refocus.training.trainer import Workers, train

        workers = Workers(1, 1, use_gpu=False)
        with pytest.raises(RunExists):
            train(shared_store, recipes.get("smoke"), dataset=dataset, run=finished_run, workers=workers)
