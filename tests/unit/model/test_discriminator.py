"""The network that judges: one score an image."""

from __future__ import annotations

import torch

from refocus.model.discriminator import Discriminator


def test_a_discriminator_gives_one_score_an_image() -> None:
    assert Discriminator(channels=3, width=4)(torch.rand(5, 3, 48, 64)).shape == (5,)
