"""Whole training configurations by name: to change an experiment, write a recipe, not a flag."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from refocus.errors import ConfigurationError
from refocus.recipes.deep_r import deep_r
from refocus.recipes.standard import brightfield, fluorescence, fluorescence_small, smoke
from refocus.training.config import TrainingConfig

RECIPES: dict[str, Callable[[], TrainingConfig]] = {
    "smoke": smoke,
    "fluorescence": fluorescence,
    "fluorescence_small": fluorescence_small,
    "brightfield": brightfield,
    "deep_r": deep_r,
}

__all__ = ["RECIPES", "get", "names"]


def names() -> tuple[str, ...]:
    """Names of all recipes."""
    return tuple(RECIPES)


def get(name: str) -> TrainingConfig:
    """Build the recipe of this name.

    Raises
    ------
    ConfigurationError
        If there is none; the message names the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]()
    near = difflib.get_close_matches(name.lower().replace("-", "_"), RECIPES, n=2, cutoff=0.5)
    guess = f"Did you mean {' or '.join(near)}? " if near else ""
    raise ConfigurationError(f"no recipe is named {name!r}. {guess}There are: {', '.join(RECIPES)}.")
