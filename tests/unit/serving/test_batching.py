from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from refocus.model.restore import LoadedModel
from refocus.serving.batching import BatchingModel
from refocus.testing.service import tiny_package


@pytest.fixture
def model():
    model = BatchingModel(
        tiny_package(1, name="tiny"), device="cpu", precision="fp32", pixels_per_batch=4 * 64 * 64, together=True
    )
    yield model
    model.close()


def test_many_threads_get_what_each_would_get_alone(model):
    alone = LoadedModel(tiny_package(1, name="tiny"), device="cpu", precision="fp32")
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 4000, (1, 48 + 8 * (n % 3), 64)).astype(np.uint16) for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: model.restore(image, axes="ZYX").pixels, images))
    for image, restored in zip(images, together, strict=True):
        expected = alone.restore(image, axes="ZYX").pixels
        # Batches change the order of sums: a grey level of 4000 at most.
        np.testing.assert_allclose(restored.astype(int), expected.astype(int), atol=1)


def sizes_of_batches(model, monkeypatch) -> list[int]:
    """Of nine requests, of which eight gather while the first runs."""
    sizes: list[int] = []
    release = threading.Event()
    run = LoadedModel.predict

    def slow_at_first(self, batch):
        sizes.append(len(batch))
        release.wait(5)
        return run(self, batch)

    monkeypatch.setattr(LoadedModel, "predict", slow_at_first)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(model.predict, torch.zeros(1, 1, 64, 64))
        while not sizes:
            pass
        others = [pool.submit(model.predict, torch.zeros(1, 1, 64, 64)) for _ in range(8)]
        while len(model._waiting) < 8:
            pass
        release.set()
        for future in (first, *others):
            assert future.result(10).image.shape == (1, 1, 64, 64)
    return sizes


def test_what_waits_runs_together_up_to_the_pixel_budget(model, monkeypatch):
    # One ran alone while eight gathered; four at a time fit the budget.
    assert sizes_of_batches(model, monkeypatch) == [1, 4, 4]


def test_on_cpus_requests_take_turns(monkeypatch):
    model = BatchingModel(tiny_package(1, name="tiny"), device="cpu", precision="fp32")
    assert sizes_of_batches(model, monkeypatch) == [1] * 9
    model.close()


def test_a_failing_batch_fails_its_requests_and_nobody_elses(model, monkeypatch):
    run = LoadedModel.predict

    def fails_on_nan(self, batch):
        if bool(batch.isnan().any()):
            raise RuntimeError("device lost")
        return run(self, batch)

    monkeypatch.setattr(LoadedModel, "predict", fails_on_nan)
    with pytest.raises(RuntimeError, match="device lost"):
        model.predict(torch.full((1, 1, 64, 64), float("nan")))
    assert model.predict(torch.zeros(1, 1, 64, 64)).image.shape == (1, 1, 64, 64)


def test_a_closed_model_still_answers_those_who_hold_it(model):
    model.close()
    assert model.predict(torch.zeros(1, 1, 64, 64)).image.shape == (1, 1, 64, 64)
