"""Recipes: each can be built, and a misspelt one says what was meant."""

from __future__ import annotations

import pytest

from refocus import recipes
from refocus.errors import ConfigurationError
from refocus.model.networks import build_network
from refocus.training.config import TrainingConfig


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_whole_and_survives_json(name: str) -> None:
    config = recipes.get(name)
    assert config.name == name
    assert TrainingConfig.model_validate_json(config.model_dump_json()) == config
    weights = sum(p.numel() for p in build_network(config.network).parameters())
    assert weights * 2 < 20e6  # half precision, the limit of what is bundled


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("flourescence", "fluorescence"), ("deep-r", "deep_r"), ("Smoke", "smoke"), ("bright", "brightfield")],
)
def test_a_misspelt_recipe_names_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Did you mean .*{meant}"):
        recipes.get(typed)


def test_an_unknown_recipe_lists_all() -> None:
    with pytest.raises(ConfigurationError, match="There are: smoke"):
        recipes.get("xyzzy")
