"""The service of a fresh install: no store, no training, the config as it ships; and scaled to zero."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from refocus.client import Client
from refocus.model.checkpoint import ModelPackage, bundled_names
from refocus.testing.cluster import LocalCluster
from refocus.testing.service import replica_pids, serve_run

pytestmark = [pytest.mark.ray]
STORE_VARIABLES = ("AWS_", "REFOCUS_", "S3_")


@pytest.fixture(scope="module")
def fresh(repository, tmp_path_factory):
    """(address, cluster) of a service that knows of no store and may give its device back."""
    folder = tmp_path_factory.mktemp("fresh")
    changes = {
        # Nothing but the numbers that decide when an idle replica goes.
        r"(name: Restorer[\s\S]*?min_replicas:) 1": r"\1 0",
        r"(name: Restorer[\s\S]*?downscale_delay_s:) 120": (
            r"\1 3\n          downscale_to_zero_delay_s: 3"
            "\n          look_back_period_s: 3\n          metrics_interval_s: 1"
        ),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(STORE_VARIABLES)]:
            patch.delenv(name)
        # A store that somebody left running is configured by a file in the home folder.
        patch.setenv("HOME", str(folder))
        with (
            LocalCluster(num_cpus=4, working_directory=repository) as cluster,
            serve_run(cluster, repository, folder, changes=changes) as url,
        ):
            yield url, cluster


def test_bundled_weights_serve_without_a_store_and_the_device_is_given_back(fresh):
    url, cluster = fresh
    image = (np.random.default_rng(0).random((200, 160)) * 3000 + 200).astype(np.uint16)
    with Client(url, patience_s=240, retries=60) as client:
        client.wait_until_ready(240)
        answer = client.refocus_detailed(image)
        assert answer.model == "fluorescence"
        assert answer.digest == ModelPackage.bundled("fluorescence").digest
        assert answer.pixels.shape == image.shape
        assert {model["name"] for model in client.models()} == set(bundled_names())
        deadline = time.monotonic() + 120
        while replica_pids(cluster, "Restorer") and time.monotonic() < deadline:
            time.sleep(0.5)
        assert replica_pids(cluster, "Restorer") == []
        # Nothing runs; the next request starts it again, and waits for that.
        assert client.refocus_detailed(image).digest == answer.digest
        assert len(replica_pids(cluster, "Restorer")) == 1
