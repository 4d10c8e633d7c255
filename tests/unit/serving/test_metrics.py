from __future__ import annotations

from refocus.serving.metrics import ProcessMeters, RequestMetrics
from refocus.serving.restorer import Restorer
from refocus.testing.service import crown, tiny_package


def test_swaps_are_counted_by_outcome(catalog, store, config):
    crown(catalog, tiny_package(1, name="tiny"))
    meters = ProcessMeters()
    restorer = Restorer(config, catalog, meters)
    broken = crown(catalog, tiny_package(2, name="tiny"))
    store.put(f"registry/tiny/versions/{broken}/weights.safetensors", b"no weights")
    restorer.follow()
    said = meters.exposition().decode()
    assert 'refocus_model_swaps_total{model="tiny",outcome="swapped"} 1.0' in said
    assert 'refocus_model_swaps_total{model="tiny",outcome="refused"} 1.0' in said


def test_requests_are_counted_in_and_out():
    meters = ProcessMeters()
    metrics = RequestMetrics(meters)
    metrics.began()
    assert "refocus_requests_ongoing 1.0" in meters.exposition().decode()
    metrics.ended("/v1/refocus", 200, "tiny@abc", {"model": 30.0, "made up": 1.0}, pixels=100)
    said = meters.exposition().decode()
    assert "refocus_requests_ongoing 0.0" in said
    assert 'refocus_requests_total{model="tiny@abc",route="/v1/refocus",status="200"} 1.0' in said
    assert 'refocus_pixels_total{model="tiny@abc"} 100.0' in said
    assert "made up" not in said


def test_models_beyond_the_most_share_a_label():
    meters = ProcessMeters()
    metrics = RequestMetrics(meters)
    for number in range(40):
        metrics.began()
        metrics.ended("/v1/refocus", 200, f"m@{number}")
    lines = [line for line in meters.exposition().decode().splitlines() if line.startswith("refocus_requests_total")]
    assert len(lines) == 33
    assert any('model="other"' in line and line.endswith(" 8.0") for line in lines)
