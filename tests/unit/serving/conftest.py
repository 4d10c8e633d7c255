"""A whole service in this process: real models, a registry on an in-process S3, routes called over ASGI."""

from __future__ import annotations

import pytest
import torch
from moto import mock_aws
from pydantic import SecretStr
from starlette.testclient import TestClient

from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.model.checkpoint import ModelPackage, PackageConfig
from refocus.model.networks import NetworkConfig, build_network
from refocus.registry.catalog import Catalog
from refocus.serving.config import ServingConfig
from refocus.serving.http import make_app
from refocus.serving.local import LocalBackend
from refocus.serving.restorer import Restorer


def package(seed: int = 0, *, name: str = "tiny", channels: int = 1, card: dict | None = None) -> ModelPackage:
    network = NetworkConfig(channels=channels, widths=(4, 4), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1)
    torch.manual_seed(seed)
    built = build_network(network)
    with torch.no_grad():
        for weight in built.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    config = PackageConfig(
        name=name,
        modality="brightfield" if channels == 3 else "fluorescence",
        network=network,
        largest_blur_px=50.0,
        halo_px=64,
    )
    made = ModelPackage.of(built, config)
    return ModelPackage(made.config, made.weights, card or {})


def crown(catalog: Catalog, made: ModelPackage) -> str:
    """Make a package champion, whatever the gate would say."""
    record = catalog.publish(made)
    try:
        seen = catalog.alias(record.model, "champion")
    except FileNotFoundError:
        seen = None
    catalog.move(record.model, "champion", record.digest, seen=seen, kind="promote", why="test")
    return record.digest


@pytest.fixture(scope="session")
def in_process_store():
    with mock_aws():
        settings = StoreSettings(bucket="serving-test", access_key="a", secret_key=SecretStr("b"), attempts=1)
        store = ObjectStore(settings)
        store.create_bucket()
        yield store


@pytest.fixture
def store(in_process_store):
    for entry in list(in_process_store.list()):
        in_process_store.delete(entry.key)
    return in_process_store


@pytest.fixture
def catalog(store) -> Catalog:
    return Catalog(store)


@pytest.fixture(scope="session")
def config() -> ServingConfig:
    return ServingConfig(store="required", device="cpu", precision="fp32", retry_after_s=3)


@pytest.fixture(scope="session")
def service(in_process_store, config):
    """The service with a grey and a colour champion: (test client, restorer)."""
    catalog = Catalog(in_process_store)
    crown(catalog, package(1))
    crown(catalog, package(2, name="tinted", channels=3))
    restorer = Restorer(config, catalog)
    with TestClient(make_app(LocalBackend(restorer), config), raise_server_exceptions=False) as client:
        yield client, restorer
