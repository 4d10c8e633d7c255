"""A registry on an in-process S3, and packages small enough to build in milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import torch
from moto import mock_aws
from pydantic import SecretStr

from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.model.checkpoint import ModelPackage, PackageConfig
from refocus.model.evaluation import EvaluationReport, Measurement, Provenance, Score, Speed
from refocus.model.networks import NetworkConfig, build_network
from refocus.registry.catalog import Catalog

TINY = NetworkConfig(widths=(4, 4), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1)


def package(seed: int = 0, report: EvaluationReport | None = None, name: str = "tiny") -> ModelPackage:
    torch.manual_seed(seed)
    network = build_network(TINY)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    config = PackageConfig(name=name, modality="fluorescence", network=TINY, largest_blur_px=8.0, halo_px=16)
    made = ModelPackage.of(network, config)
    evaluation = {} if report is None else report.model_dump(mode="json")
    return ModelPackage(made.config, made.weights, {"run": "run-1", "dataset": "plates/v1"}, evaluation)


def report(
    gain_db: float,
    *,
    bands: tuple[str, ...] = ("2 um", "4 um"),
    band_gain_db: dict[str, float] | None = None,
    specimens: int = 6,
    coverage: float | None = 0.9,
    ms_per_megapixel: float = 100.0,
    first_specimen: int = 0,
) -> EvaluationReport:
    """A model that is `gain_db` better than the input, a little more on some specimens than on others."""
    measurements = []
    for band in bands:
        gain = (band_gain_db or {}).get(band, gain_db)
        for specimen in range(first_specimen, first_specimen + specimens):
            for method, psnr in (("input", 24.0), ("net", 24.0 + gain + 0.01 * specimen)):
                score = Score(psnr_db=psnr, ssim=psnr / 40, nrmse=0.1, pearson=0.9, signal_ratio=1.0)
                measurements.append(
                    Measurement(
                        method=method,
                        specimen=f"s{specimen}",
                        modality="fluorescence",
                        band=band,
                        kind="simulated",
                        score=score,
                        coverage=coverage if method == "net" else None,
                    )
                )
    return EvaluationReport(
        model="net",
        measurements=tuple(measurements),
        speed={"net": Speed(ms_per_megapixel=ms_per_megapixel, megapixels=1, device="cpu", threads=1)},
        provenance=Provenance(
            created=datetime(2026, 1, 1, tzinfo=UTC), commit="0", machine="test", images="plates/v1", seed=0
        ),
    )


@pytest.fixture(scope="session")
def in_process_store():
    with mock_aws():
        settings = StoreSettings(bucket="registry-test", access_key="a", secret_key=SecretStr("b"), attempts=1)
        store = ObjectStore(settings)
        store.create_bucket()
        yield store


@pytest.fixture
def store(in_process_store):
    yield in_process_store
    for entry in list(in_process_store.list()):
        in_process_store.delete(entry.key)


@pytest.fixture
def catalog(store) -> Catalog:
    return Catalog(store)
