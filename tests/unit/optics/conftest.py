"""Optics tests run on one thread: they share the machine with each other, and sums then have one order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from refocus.optics.settings import OpticalSystem


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def objective() -> OpticalSystem:
    """A 20x 0.75 dry objective on 6.5 um pixels."""
    return OpticalSystem(numerical_aperture=0.75, wavelength_um=0.525, pixel_size_um=0.325)
