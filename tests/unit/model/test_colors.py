"""What colours show: a section, or channels of light."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from refocus.model.colors import colors_held, modality_seen, only_channel


def _merged_fluorescence() -> np.ndarray:
    """Two channels of spots on a dark ground, [1, Y, X, 3]; the third is empty."""
    rng = np.random.default_rng(0)
    spots = ndimage.gaussian_filter((rng.random((2, 96, 96)) < 0.004).astype(float), (0, 2, 2))
    return np.stack([*(200 * spots / spots.max() + 12 + rng.random((2, 96, 96))), np.zeros((96, 96))], -1)[None]


def _section() -> np.ndarray:
    """Two stains on bright ground, [1, Y, X, 3]."""
    rng = np.random.default_rng(1)
    amount = ndimage.gaussian_filter(rng.random((96, 96, 1)), (3, 3, 0))
    amount = (amount - amount.min()) / np.ptp(amount)
    return rng.poisson(235 * np.exp(-amount * [0.5, 1.2, 0.7]))[None]


def test_channels_merged_on_a_dark_ground_are_no_section():
    assert colors_held(_merged_fluorescence().astype(np.uint8)) == 1
    assert colors_held(_section().astype(np.uint8)) == 3


def test_a_section_padded_with_black_is_a_section():
    padded = np.pad(_section(), ((0, 0), (0, 160), (0, 60), (0, 0))).astype(np.uint8)
    assert np.median(padded) == 0
    assert colors_held(padded) == 3


@pytest.mark.parametrize(("channel", "others"), [(0, "equal"), (1, "constant"), (2, "constant")])
def test_the_only_channel_is_found(channel, others):
    light = _merged_fluorescence()[0, ..., :1].astype(np.uint8)
    colors = np.repeat(light, 3, -1) if others == "equal" else np.zeros((96, 96, 3), np.uint8)
    colors[..., channel] = light[..., 0]
    assert only_channel(colors) == channel
    assert modality_seen(colors[None]) == "fluorescence"
    assert only_channel(_merged_fluorescence()[0]) is None
