from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from refocus.model.memory import batch_pixels_for, most_at_once, tile_px_for

CPU, CUDA, OTHER = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


def of_memory(gib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=gib * 2**30))


def test_larger_accelerators_take_more_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    of_memory(80, monkeypatch)
    assert [most_at_once(2**20, device) for device in (CUDA, OTHER, CPU)] == [80, 16, 1]


@pytest.mark.parametrize(
    ("gib", "grey", "colour"), [(4, 1024, 1024), (8, 2048, 1024), (16, 3072, 1024), (24, 4096, 2048), (80, 4096, 4096)]
)
def test_tiles_are_as_large_as_a_quarter_of_the_memory_takes(
    gib: int, grey: int, colour: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_memory(gib, monkeypatch)
    assert (tile_px_for(CUDA, 1), tile_px_for(CUDA, 3)) == (grey, colour)
    for channels in (1, 3):
        assert 200 * channels * batch_pixels_for(CUDA, channels) <= gib * 2**30 / 4
    assert batch_pixels_for(CUDA, 1) <= 20_000_000


def test_a_processor_and_a_device_that_says_nothing_take_small_tiles() -> None:
    assert [tile_px_for(device, 1) for device in (CPU, OTHER)] == [1024, 1024]
    assert batch_pixels_for(CPU, 3) == 2_000_000
