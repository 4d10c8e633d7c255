"""A whole service in this process: real models, a registry on an in-process S3, routes called over ASGI."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from refocus.registry.catalog import Catalog
from refocus.serving.config import ServingConfig
from refocus.serving.http import make_app
from refocus.serving.local import LocalBackend
from refocus.serving.restorer import Restorer
from refocus.testing.service import TINY_RGB, crown, tiny_package


@pytest.fixture(scope="session")
def config() -> ServingConfig:
    return ServingConfig(store="required", device="cpu", precision="fp32", retry_after_s=3)


@pytest.fixture(scope="session")
def service(new_store, config):
    """The service with a grey and a colour champion: (test client, restorer)."""
    catalog = Catalog(new_store())
    crown(catalog, tiny_package(1, name="tiny"))
    crown(catalog, tiny_package(2, name="tinted", network=TINY_RGB))
    restorer = Restorer(config, catalog)
    with TestClient(make_app(LocalBackend(restorer), config), raise_server_exceptions=False) as client:
        yield client, restorer
