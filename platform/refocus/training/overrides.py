"""``--set key=value``: changing a recipe from the command line, checked like the recipe itself."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from refocus.errors import ConfigurationError, in_one_line, not_fitting
from refocus.training.config import TrainingConfig


def with_overrides(config: TrainingConfig, assignments: Iterable[str]) -> TrainingConfig:
    """Return `config` with ``key=value`` assignments; dots reach into parts, values are YAML.

    Raises
    ------
    ConfigurationError
        If a key is unknown (the nearest ones are named), or a value does not fit.

    Examples
    --------
    >>> with_overrides(TrainingConfig(name="mine"), ["steps=500", "optics.in_focus_share=0.3"]).steps
    500
    """
    values = config.model_dump()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {assignment!r} is not understood; expected key=value, such as steps=500.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"--set {assignment!r} is no YAML: {in_one_line(error)}.") from error
        _assign(values, key.strip().split("."), value, config)
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise not_fitting(error, f"the recipe {config.name!r} does not hold with these settings:") from error


def _assign(values: dict[str, Any], path: list[str], value: Any, model: BaseModel) -> None:
    first, *rest = path
    if first not in values:
        near = difflib.get_close_matches(first, values, n=3, cutoff=0.5)
        raise ConfigurationError(
            f"{type(model).__name__} has no {first!r}; "
            + (f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(values)}.")
        )
    if not rest:
        values[first] = value
        return
    part = getattr(model, first)
    if not isinstance(part, BaseModel):
        raise ConfigurationError(f"{first!r} has no parts, so {'.'.join(path)!r} cannot be set.")
    _assign(values[first], rest, value, part)
