"""What tests share: one SeaweedFS and one Ray cluster a session, both private and both ended in any case."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Set before anything imports Ray: the guess it makes when this is unset differs between commands.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, where there is one."""
    folder = Path(os.environ.get("REFOCUS_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; REFOCUS_TEST_DATA names a folder of them")
    return folder


@pytest.fixture(scope="session")
def local_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A SeaweedFS of this session's own: a `LocalStore` that is up."""
    from refocus.io.local_store import LocalStore

    store = LocalStore(tmp_path_factory.mktemp("store"))
    store.up()
    try:
        yield store
    finally:
        store.down()


@pytest.fixture(scope="session")
def store_settings(local_store):
    """How to reach the session's store."""
    return local_store.up()


@pytest.fixture
def store(store_settings) -> Iterator:
    """An `ObjectStore` in a bucket of this test's own, which goes with the test.

    SeaweedFS keeps volumes for every bucket and has a limited number of them: after a hundred buckets writes fail.
    """
    from refocus.io.store import ObjectStore

    settings = store_settings.model_copy(update={"bucket": f"test-{uuid.uuid4().hex[:12]}"})
    client = settings.client()
    client.create_bucket(Bucket=settings.bucket)
    made = ObjectStore(settings)
    try:
        yield made
    finally:
        for entry in list(made.list()):
            made.delete(entry.key)
        client.delete_bucket(Bucket=settings.bucket)


@pytest.fixture(scope="session")
def cluster(store_settings) -> Iterator:
    """A Ray cluster of this session's own, whose jobs find the session's store."""
    from refocus.testing.cluster import LocalCluster

    with LocalCluster(num_cpus=5, working_directory=REPOSITORY, environment=store_settings.environment()) as running:
        yield running


@pytest.fixture(scope="session")
def ray_session(cluster) -> Iterator:
    """This process, connected to the session's cluster."""
    import ray

    ray.init(address=cluster.environment["RAY_ADDRESS"], log_to_driver=False)
    try:
        yield ray
    finally:
        ray.shutdown()
