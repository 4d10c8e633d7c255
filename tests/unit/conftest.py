"""What unit tests share: an S3 in this process, which needs no server and no network."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

import pytest

STORE_VARIABLES = ("AWS_", "REFOCUS_BUCKET", "S3_BUCKET")


@pytest.fixture(autouse=True)
def _no_store_but_what_a_test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a store, with a champion in it, on this machine or elsewhere."""
    for name in [name for name in os.environ if name.startswith(STORE_VARIABLES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REFOCUS_HOME", "/nonexistent")


@pytest.fixture(scope="session")
def new_store() -> Iterator[Callable[[], object]]:
    """Makes an `ObjectStore` in a bucket of its own at every call."""
    from moto import mock_aws
    from pydantic import SecretStr

    from refocus.io.settings import StoreSettings
    from refocus.io.store import ObjectStore

    def make() -> ObjectStore:
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        made = ObjectStore(StoreSettings(bucket=bucket, access_key="a", secret_key=SecretStr("b"), attempts=1))
        made.create_bucket()
        return made

    with mock_aws():
        yield make


@pytest.fixture
def store(new_store):
    """An empty store."""
    return new_store()


@pytest.fixture
def catalog(store):
    """An empty registry."""
    from refocus.registry.catalog import Catalog

    return Catalog(store)
