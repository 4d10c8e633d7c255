from __future__ import annotations

import numpy as np
import pytest
import torch

from refocus.model.blanks import flat, spikes
from refocus.model.blanks_screen import screened
from refocus.model.specimen import Specimen


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).poisson(500.0, shape).astype(np.uint16)


def _framed() -> np.ndarray:
    plane = _noise((1, 300, 200))
    plane[:, :, :40] = 0
    return plane


def _spiked() -> np.ndarray:
    plane = _noise((1, 300, 200))
    plane[0, 20:280:20, 50] = 60_000
    return plane


def _dead_row() -> np.ndarray:
    plane = _noise((3, 300, 200))
    plane[:, 150] = 700
    return plane


PLANES = {"noise": _noise((1, 90, 80)), "frame": _framed(), "spikes": _spiked(), "dead row": _dead_row()}


@pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES)
def test_all_that_is_flat_is_near_the_rows_told_and_spikes_are_as_many(plane: np.ndarray) -> None:
    near_flat, count = screened(torch.from_numpy(plane.astype(np.float32)), 100.0)
    is_flat = flat(plane).any(1)
    assert not (is_flat & ~near_flat).any()
    assert near_flat.any() == is_flat.any()
    assert count == int(spikes(plane, 100.0).sum())


@pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES)
def test_blanks_are_the_same_with_and_without_a_first_look(plane: np.ndarray) -> None:
    alone = Specimen.of(plane).blanks
    looked = Specimen.of(plane, held=torch.from_numpy(plane.astype(np.float32))).blanks
    np.testing.assert_array_equal(looked.levels, alone.levels)
    assert (looked.spikes, looked.telling_step, looked.white) == (alone.spikes, alone.telling_step, alone.white)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 40), (1, 40, 1), (3, 2, 2), (1, 16, 16)])
def test_small_planes_are_looked_at_too(shape: tuple[int, ...]) -> None:
    plane = np.full(shape, 7, np.uint8)
    near_flat, count = screened(torch.from_numpy(plane.astype(np.float32)), 1.0)
    assert near_flat.shape == (shape[1],)
    assert not (flat(plane).any(1) & ~near_flat).any()
    assert count == 0
