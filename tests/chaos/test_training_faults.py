"""What training survives, with real processes and a real store; docs/training.md has the output.

pytest tests/chaos/test_training_faults.py -s -m ""          all of it
pytest tests/chaos/test_training_faults.py -m "not slow"     what every change must pass
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from refocus.data.dataset import DatasetVersion
from refocus.data.shards import encode_shard
from refocus.data.tiles import Tile
from refocus.io.local_store import LocalStore
from refocus.io.store import ObjectStore
from refocus.testing.cluster import LocalCluster
from refocus.testing.faulty_store import SLOW_DOWN, FaultyStore
from refocus.training.runs import (
    fetch_checkpoint,
    read_attempts,
    read_progress,
    run_prefix,
    whole_checkpoints,
)
from refocus.training.state import load_state
from samples import put_sharp_images

# The first of the slow tests also waits for three undisturbed runs.
pytestmark = [pytest.mark.ray, pytest.mark.store, pytest.mark.timeout(1800)]

# Some fifteen seconds of training: enough for a fault to fall into.
STEPS, INTERVAL, BATCH = 240, 10, 8
_SETTINGS = {
    "steps": STEPS, "checkpoint_interval_steps": INTERVAL, "batch_size": BATCH, "crop_px": 32, "warmup_steps": 5,
    "learning_rate": 0.002, "validation_tiles": 24, "initial_weights": "null", "ema_decay": 0.9,
    "optics.blur_radius_px": [0, 6],
    "network": "{widths: [8, 12], encoder_blocks: [1], decoder_blocks: [1], middle_blocks: 1}",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Place:
    """A cluster and a store, with a dataset of a few passes to a run."""

    cluster: LocalCluster
    local_store: LocalStore
    store: ObjectStore
    dataset: str
    tiles: int

    def on(self, cluster: LocalCluster) -> Place:
        return dataclasses.replace(self, cluster=cluster)


class Run:
    """One training run, started as users start it."""

    def __init__(self, place: Place, tmp_path: Path, **changes: object) -> None:
        self.place, self.name = place, f"chaos-{uuid.uuid4().hex[:6]}"
        self.workers = str(changes.pop("workers", 2))
        self.dataset = str(changes.pop("dataset", place.dataset))
        self.environment = place.cluster.environment | dict(changes.pop("environment", {}))
        self._settings = _SETTINGS | changes
        self.log = tmp_path / f"{self.name}.log"
        self._driver: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> Run:
        sets = itertools.chain.from_iterable(("--set", f"{key}={value}") for key, value in self._settings.items())
        with self.log.open("ab") as sink:
            self._driver = subprocess.Popen(
                ["jobs/train.py", "--run", self.name, "--dataset", self.dataset, "--workers", self.workers, *sets,
                 *arguments],
                cwd=self.place.cluster.working_directory, env=self.environment, stdout=sink, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return self

    def kill_driver(self) -> None:
        self._driver.kill()
        self._driver.wait()

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 150.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self._driver.poll() is None, f"the run ended too early:\n{self.text()[-4000:]}"
            assert time.monotonic() < deadline, f"the condition did not come about:\n{self.text()[-4000:]}"
            time.sleep(0.05)

    def wait_for_checkpoint(self, step: int = INTERVAL) -> int:
        """Wait for a whole checkpoint of at least this step, and return the newest one's step."""
        self.wait_for(lambda: self.checkpoints() and self.checkpoints()[-1] >= step)
        return self.checkpoints()[-1]

    def finish(self, timeout_s: float = 400.0) -> int:
        return self._driver.wait(timeout=timeout_s)

    def checkpoints(self) -> list[int]:
        return [checkpoint.seal.step for checkpoint in whole_checkpoints(self.place.store, self.name)]

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def said(self, beginning: str) -> list[str]:
        return [line for line in self.text().splitlines() if line.startswith(beginning)]

    @property
    def loss(self) -> float:
        return whole_checkpoints(self.place.store, self.name)[-1].seal.metrics["validation_loss"]


def check_outcome(run: Run, *, fault: str, restarts: int, lost_from: int = 0, interval: int = INTERVAL) -> None:
    """What must hold after any fault, once the run has ended."""
    store, name = run.place.store, run.name
    assert run.finish() == 0, run.text()[-6000:]

    history, attempts = read_progress(store, name), read_attempts(store, name)
    reported = [entry["step"] for entry in history]
    assert reported == sorted(set(reported))
    assert [step for step in reported if step % interval == 0] == list(range(interval, STEPS + 1, interval))
    assert run.checkpoints()[-1] == STEPS
    assert len(attempts) == 1 + restarts, attempts
    # Nothing that was whole is done again: the next start went on from the newest checkpoint, or a newer one.
    assert all(attempt.step >= lost_from for attempt in attempts[1:]), (lost_from, attempts)

    with tempfile.TemporaryDirectory() as folder:
        state = load_state(fetch_checkpoint(store, whole_checkpoints(store, name)[-1], Path(folder)))
    number, had = state["position"]["number"], state["position"]["had"].tolist()
    assert len(had) == len(set(had)), "tiles were shown twice in one pass"
    left_out = state["trainer"]["batches_left_out"]
    # An interrupted pass went on: had one been drawn anew, this many steps would have taken more passes.
    assert number * (run.place.tiles // BATCH) + len(had) // BATCH == STEPS + left_out

    orphans = [role for role in ("RayTrainWorker", "TrainController") if _stays(run, role)]
    assert not orphans, f"processes were left: {orphans}"
    whole = tuple(checkpoint.key for checkpoint in whole_checkpoints(store, name))
    partial = [e.key for e in store.list(run_prefix(name) + "step-") if not e.key.startswith(whole)]
    assert not partial
    uploads = store.settings.client().list_multipart_uploads(Bucket=store.settings.bucket)
    assert not [each for each in uploads.get("Uploads", ()) if each["Key"].startswith(run_prefix(name))]
    starts = ", ".join(f"{attempt.workers} workers from step {attempt.step}" for attempt in attempts)
    print(f"\n{fault}: {history[-1]['step']} steps, validation loss {run.loss:.4f}; starts: {starts}", flush=True)


def _stays(run: Run, role: str, timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while run.place.cluster.workers(role):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.2)
    return False


def kill_one(run: Run, role: str) -> None:
    os.kill(run.place.cluster.workers(role)[0], signal.SIGKILL)


@pytest.fixture(scope="module")
def place(repository, tmp_path_factory) -> Iterator[Place]:
    local_store = LocalStore(tmp_path_factory.mktemp("store"))
    settings = local_store.up()
    try:
        with LocalCluster(num_cpus=3, working_directory=repository, environment=settings.environment()) as cluster:
            store = ObjectStore(settings)
            dataset = put_sharp_images(store, name="tiny", side=384, tile_px=96)
            tiles = DatasetVersion.open(store, dataset).manifest.rows("train")
            yield Place(cluster, local_store, store, dataset, tiles)
    finally:
        local_store.down()


@pytest.fixture(scope="module")
def undisturbed(place, tmp_path_factory) -> dict[int, float]:
    """Final validation loss of three seeds that nothing happened to: the noise that outcomes are held against."""
    losses = {}
    for seed in range(3):
        run = Run(place, tmp_path_factory.mktemp("undisturbed"), seed=seed).start()
        check_outcome(run, fault=f"undisturbed, seed {seed}", restarts=0)
        losses[seed] = run.loss
    return losses


def check_noise(run: Run, undisturbed: dict[int, float]) -> None:
    """A disturbed run of seed 0 is no further from the undisturbed one than seeds are from one another."""
    spread = max(undisturbed.values()) - min(undisturbed.values())
    print(f"  {run.loss - undisturbed[0]:+.4f} from the undisturbed run; three seeds spread over {spread:.4f}")
    assert abs(run.loss - undisturbed[0]) <= spread


def test_a_worker_that_is_killed_costs_at_most_one_interval(place, tmp_path):
    run = Run(place, tmp_path).start()
    reached = run.wait_for_checkpoint()
    kill_one(run, "RayTrainWorker")
    check_outcome(run, fault="kill -9 of a train worker", restarts=1, lost_from=reached)


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_the_loss_within_noise(place, tmp_path, undisturbed):
    run = Run(place, tmp_path).start()
    reached = run.wait_for_checkpoint(20)
    kill_one(run, "RayTrainWorker")
    check_outcome(run, fault="kill -9 of a train worker", restarts=1, lost_from=reached)
    check_noise(run, undisturbed)


@pytest.mark.slow
def test_a_driver_that_is_killed_is_gone_on_with_by_resume(place, tmp_path, undisturbed):
    run = Run(place, tmp_path).start()
    reached = run.wait_for_checkpoint(20)
    run.kill_driver()
    assert not _stays(run, "RayTrainWorker"), "workers outlived their driver"
    run.start("--resume")
    check_outcome(run, fault="kill -9 of the driver, --resume", restarts=1, lost_from=reached)
    check_noise(run, undisturbed)


@pytest.mark.slow
def test_a_node_that_is_killed_leaves_a_smaller_group_that_finishes(repository, place, tmp_path, undisturbed):
    environment = place.store.settings.environment()
    with LocalCluster(num_cpus=1, working_directory=repository, environment=environment) as cluster:
        node = cluster.add_node(num_cpus=1)
        # Until the node counts as dead, Ray Train waits in vain for a group of the old size.
        environment = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
        run = Run(place.on(cluster), tmp_path, workers="1:2", environment=environment).start()
        reached = run.wait_for_checkpoint(20)
        node.kill()
        check_outcome(run, fault="kill -9 of a node, --workers 1:2", restarts=1, lost_from=reached)
        assert [attempt.workers for attempt in read_attempts(place.store, run.name)] == [2, 1]
    check_noise(run, undisturbed)


@pytest.mark.slow
def test_a_node_that_is_announced_to_go_is_left_with_a_checkpoint(repository, place, tmp_path, undisturbed):
    environment = place.store.settings.environment()
    with LocalCluster(num_cpus=1, working_directory=repository, environment=environment) as cluster:
        node = cluster.add_node(num_cpus=1)
        run = Run(place.on(cluster), tmp_path, workers="1:2").start()
        reached = run.wait_for_checkpoint(20)
        cluster.run(
            "ray", "drain-node", "--address", cluster.environment["RAY_ADDRESS"], "--node-id", node.node_id,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "reclaimed",
            "--deadline-remaining-seconds", "15", timeout_s=60,
        )  # fmt: skip
        run.wait_for(lambda: "nodes are about to go" in run.text())
        check_outcome(run, fault="a node is announced to go in 15 s", restarts=1, lost_from=reached)
        assert [attempt.workers for attempt in read_attempts(place.store, run.name)] == [2, 1]
    check_noise(run, undisturbed)


@pytest.mark.slow
def test_a_store_that_is_restarted_is_waited_for(place, tmp_path, undisturbed):
    run = Run(place, tmp_path).start()
    run.wait_for_checkpoint(20)
    os.kill(place.local_store.status().pid, signal.SIGKILL)
    time.sleep(20)
    place.local_store.up()
    check_outcome(run, fault="kill -9 of the object store, up again after 20 s", restarts=0)
    check_noise(run, undisturbed)


@pytest.mark.slow
def test_a_minute_of_503_is_waited_for(place, tmp_path, undisturbed):
    with FaultyStore(place.store.settings) as faulty:
        run = Run(place, tmp_path, environment=faulty.settings.environment()).start()
        run.wait_for_checkpoint(20)
        faulty.inject(SLOW_DOWN, times=None)
        time.sleep(60)
        faulty.heal()
        check_outcome(run, fault="503 SlowDown for a minute", restarts=0)
        print(f"  {faulty.count(SLOW_DOWN)} requests were refused")
        assert faulty.count(SLOW_DOWN) > 0
    check_noise(run, undisturbed)


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a full disk needs a small file system, and this user may not mount one: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def cramped_place(repository, place, tiny_disk) -> Iterator[Place]:
    """The same store, and a cluster whose temporary files lie on the tiny disk."""
    environment = place.store.settings.environment() | {"TMPDIR": str(tiny_disk)}
    with LocalCluster(num_cpus=2, working_directory=repository, environment=environment) as cluster:
        yield place.on(cluster)


@contextlib.contextmanager
def kept_full(disk: Path) -> Iterator[None]:
    """Whatever comes free, as a checkpoint that was uploaded, is taken at once."""
    filler, done = disk / "filler", threading.Event()

    def top_up() -> None:
        with filler.open("ab", buffering=0) as sink:
            while not done.wait(0.01):
                with contextlib.suppress(OSError):
                    while sink.write(bytes(2**16)):
                        pass

    thread = threading.Thread(target=top_up)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        filler.unlink()


@pytest.mark.slow
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(cramped_place, tmp_path, tiny_disk, undisturbed):
    # Seconds apart, so that the disk is free again before the third in a row.
    rarely = INTERVAL * 6
    run = Run(cramped_place, tmp_path, checkpoint_interval_steps=rarely).start()
    run.wait_for_checkpoint(rarely)
    with kept_full(tiny_disk):
        run.wait_for(lambda: "no checkpoint at step" in run.text())
    check_outcome(run, fault="a full disk for one checkpoint", restarts=0, interval=rarely)
    check_noise(run, undisturbed)


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_with_its_reason(cramped_place, tmp_path, tiny_disk):
    run = Run(cramped_place, tmp_path).start()
    reached = run.wait_for_checkpoint()
    with kept_full(tiny_disk):
        assert run.finish() == 1
    (said,) = run.said("TrainingError: run")
    assert "no checkpoint could be written" in said
    run.start("--resume")
    check_outcome(run, fault="a disk that stayed full, --resume", restarts=1, lost_from=reached)


def dataset_with_damage(place: Place) -> str:
    """The tiny dataset, but one tile is a measured pair whose target is not finite."""
    address = put_sharp_images(place.store, name=f"damaged-{uuid.uuid4().hex[:6]}", side=384, tile_px=96)
    key = DatasetVersion.open(place.store, address).manifest.keys("train")[0]
    first, *rest = pq.read_table(io.BytesIO(place.store.get(key))).to_pylist()
    pixels = Tile.from_row(first).pixels.astype(np.float32)
    damaged = dataclasses.replace(Tile.from_row(first), kind="pair", pixels=pixels, target=np.full_like(pixels, np.nan))
    rows = [damaged.row(), *rest]
    place.store.put(key, encode_shard(rows, size_bytes=sum(len(row["pixels"]) for row in rows)))
    return address


def test_a_damaged_tile_is_left_out(place, tmp_path):
    run = Run(place, tmp_path, dataset=dataset_with_damage(place)).start()
    check_outcome(run, fault="a tile that is not finite", restarts=0)
    assert read_progress(place.store, run.name)[-1]["batches_left_out"] > 0


def test_a_loss_that_stays_nan_ends_the_run_with_one_message(place, tmp_path):
    run = Run(place, tmp_path, learning_rate=1e30).start()
    assert run.finish() == 1
    (said,) = run.said("NonFiniteLoss: run")
    assert "tiles in the batch" in said
    assert len(read_attempts(place.store, run.name)) == 1, "workers were started again for nothing"
