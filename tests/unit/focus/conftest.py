"""Specimens and focal series with known truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from refocus.optics.formation import psf_transfer
from refocus.optics.settings import OpticalSystem


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cells(side_px: int, rng: np.random.Generator) -> np.ndarray:
    """Cells of about 6 pixels with fine texture inside, on a dim background."""
    inside = ndimage.gaussian_filter(rng.normal(size=(side_px, side_px)), 3, mode="wrap") > 0.1
    return np.where(inside, 30 + 100 * rng.random((side_px, side_px)), 5.0)


def series(emission: np.ndarray, system: OpticalSystem, defocus_um: np.ndarray) -> np.ndarray:
    """Noise-free planes (..., Z, Y, X) of flat specimens (..., Y, X), periodic, at these distances from focus."""
    gains = psf_transfer(system)(torch.tensor(defocus_um, dtype=torch.float32), emission.shape[-2:]).numpy()
    return np.fft.irfft2(np.fft.rfft2(emission)[..., None, :, :] * gains, emission.shape[-2:])


def noisy(planes: np.ndarray, snr: float, rng: np.random.Generator) -> np.ndarray:
    """Add white noise; `snr` is the sharpest plane's standard deviation over the noise's."""
    return planes + rng.normal(scale=planes.std(axis=(-2, -1)).max() / snr, size=planes.shape)
