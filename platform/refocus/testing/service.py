"""A running service for a test or a measurement: models that cost nothing, and ``serve run`` as users call it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from refocus.model.checkpoint import ModelPackage, PackageConfig
from refocus.model.networks import NetworkConfig, build_network
from refocus.registry.catalog import Catalog
from refocus.registry.promotion import seen_alias
from refocus.testing.cluster import LocalCluster, free_ports

TINY = NetworkConfig(widths=(4, 4), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1)
TINY_RGB = TINY.model_copy(update={"channels": 3})


def tiny_package(seed: int, *, name: str = "served", network: NetworkConfig = TINY) -> ModelPackage:
    """Return a package of untrained weights, different for each seed."""
    torch.manual_seed(seed)
    built = build_network(network)
    with torch.no_grad():
        for weight in built.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    modality = "brightfield" if network.channels == 3 else "fluorescence"
    config = PackageConfig(name=name, modality=modality, network=network, largest_blur_px=50.0, halo_px=64)
    return ModelPackage.of(built, config)


def crown(catalog: Catalog, package: ModelPackage, *, why: str = "test") -> str:
    """Make a package champion whatever the gate would say, and return its digest."""
    record = catalog.publish(package)
    seen = seen_alias(catalog, record.model, "champion")
    catalog.move(record.model, "champion", record.digest, seen=seen, kind="promote", why=why)
    return record.digest


@contextlib.contextmanager
def serve_run(
    cluster: LocalCluster,
    repository: Path,
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    changes: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run ``serve run`` on the repository's serve_configs/refocus.yaml, on a port of its own, and yield its address.

    Parameters
    ----------
    cluster : LocalCluster
        Of this service alone: what serves ends with it.
    repository : path
    folder : path
        Where the changed config and ``serve.log`` go.
    environment : mapping, optional
        Added to the cluster's.
    changes : mapping of regular expression to replacement, optional
        Further changes to the config's text; each must fit exactly once.
    """
    (port,) = free_ports(1)
    text = (repository / "serve_configs" / "refocus.yaml").read_text()
    for pattern, replacement in {r"port: 8000": f"port: {port}", **(changes or {})}.items():
        text, times = re.subn(pattern, replacement, text)
        if times != 1:
            raise ValueError(f"{pattern!r} fits {times} places of the serve config; expected one.")
    config = folder / "refocus.yaml"
    config.write_text(text)
    serve = Path(sys.executable).with_name("serve")
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [serve, "run", config], cwd=repository, env={**cluster.environment, **(environment or {})}, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            # The service ends with its cluster; a replica's leisurely end is nothing to wait for.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def replica_pids(cluster: LocalCluster, deployment: str) -> list[int]:
    """Return the processes of this cluster's replicas of a deployment, or of its ``ServeController``."""
    return cluster.workers(deployment if deployment == "ServeController" else f"ServeReplica:refocus:{deployment}")
