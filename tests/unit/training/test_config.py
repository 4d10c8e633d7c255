"""TrainingConfig: the schedule's closed form, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from refocus.training.config import DiscriminatorConfig, LossWeights, TrainingConfig


def test_learning_rate_warms_up_and_follows_a_cosine_to_its_floor() -> None:
    config = TrainingConfig(name="t", steps=110, warmup_steps=10, final_learning_rate_share=0.1)
    assert config.learning_rate_at(0) == pytest.approx(1 / 11)
    assert config.learning_rate_at(10) == pytest.approx(1.0)
    assert config.learning_rate_at(60) == pytest.approx(0.55)  # half way between 1 and 0.1
    assert config.learning_rate_at(110) == config.learning_rate_at(10_000) == pytest.approx(0.1)


def test_the_window_holds_crop_and_margin_at_the_smallest_zoom() -> None:
    config = TrainingConfig(name="t", crop_px=100, zoom=(0.5, 1.0))
    assert config.window_px >= 2 * (100 + 2 * config.optics.largest_blur_px)
    assert config.random_defocus().input_px <= 0.5 * config.window_px + 20  # rounded up to a fast transform


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 10, "warmup_steps": 10},
        {"zoom": (2.0, 1.0)},
        {"loss": LossWeights(adversarial=1.0)},
        {"discriminator": DiscriminatorConfig()},
        {"crop_px": 16},
        {"learning_rat": 1e-3},
        {"precision": "fp8"},
        {"ema_decay": 1.0},
    ],
)
def test_recipes_that_contradict_themselves_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainingConfig(name="t", **fields)
