"""What files leave unsaid: modality, pixel size, z step and specimen, answered by rules beside the images.

An ``acquisition.yaml`` anywhere under the raw prefix answers for the objects below its folder::

    rules:
      - match: "nuclei/*"            # shell pattern, relative to the sidecar's folder
        modality: fluorescence
        pixel_size_um: 0.325
        specimen: '(slide\\d+)_.*'   # first group: what the split keeps together
        minimum_sharpness: 0.02      # sharp images softer than that are quarantined
      - match: "wells/*"
        specimen: '.*/(.+)/.+'       # with a slash, on the whole key /raw/wells/A01/img_1: here the folder's name
      - match: "overview/*"
        ignore: true

The first rule that matches wins; the nearest sidecar wins over those above it; what a file says
itself wins over a rule. Only `axes` wins over files, which programs save with Z called T or C: it counts
for those with as many axes, and says nothing of others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from refocus.data.splits import DEFAULT_SPECIMEN_PATTERN, checked_pattern, specimen_of
from refocus.errors import ConfigurationError, in_one_line, not_fitting, problems_of
from refocus.optics.limits import APERTURE, PIXEL_SIZE_UM, WAVELENGTH_UM, Z_STEP_UM
from refocus.zstack import AXES, Acquisition, Modality

SIDECAR_NAME = "acquisition.yaml"


def _checked_axes(axes: str) -> str:
    if not {"Y", "X"} <= set(axes) <= set(AXES) or len(set(axes)) != len(axes):
        raise ValueError(f"{axes!r} came; expected letters of {AXES}, each once, with Y and X among them: ZYX")
    return axes


def _within(bounds: tuple[float, float]) -> Any:
    return Field(default=None, ge=bounds[0], le=bounds[1])


class Rule(BaseModel):
    """Answers for the objects that `match` a shell pattern."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: str = "*"
    ignore: bool = False
    modality: Modality | None = None
    axes: Annotated[str, AfterValidator(_checked_axes)] | None = None
    pixel_size_um: float | None = _within(PIXEL_SIZE_UM)
    z_step_um: float | None = _within(Z_STEP_UM)
    numerical_aperture: float | None = _within(APERTURE)
    wavelength_um: float | None = _within(WAVELENGTH_UM)
    refractive_index: float | None = Field(default=None, ge=1, lt=2)
    specimen: Annotated[str, AfterValidator(checked_pattern)] = DEFAULT_SPECIMEN_PATTERN
    minimum_sharpness: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @classmethod
    def answering(cls, answers: Mapping[str, Any]) -> Self:
        """Check what a command line answers.

        Raises
        ------
        ConfigurationError
            Naming every answer that does not fit.
        """
        try:
            return cls.model_validate(answers)
        except ValidationError as error:
            raise not_fitting(error) from error

    def acquisition(self) -> Acquisition:
        """Return the rule's answers; None where it has none."""
        return Acquisition(**{name: getattr(self, name) for name in Acquisition.__slots__})


class Sidecar(BaseModel):
    """The rules of one ``acquisition.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[Rule, ...]

    @classmethod
    def parse(cls, text: str, *, source: str) -> Sidecar:
        """Read YAML.

        Raises
        ------
        ConfigurationError
            If the text is no YAML or has keys that are not known.
        """
        try:
            return cls.model_validate(yaml.safe_load(text))
        except yaml.YAMLError as error:
            problems, cause = [in_one_line(error)], error
        except ValidationError as error:
            problems, cause = problems_of(error), error
        raise ConfigurationError(
            "\n  ".join([f"{source} is not a valid sidecar:", *problems])
            + f"\nExpected 'rules:' with a list of {{{', '.join(Rule.model_fields)}}}."
        ) from cause


class Answers:
    """All sidecars of a raw prefix, and what the command line answered for the rest.

    Parameters
    ----------
    sidecars : mapping of folder key to Sidecar
    fallback : Rule
        Asked where no sidecar matches, and for what the matching rule leaves open.
    """

    def __init__(self, sidecars: Mapping[str, Sidecar], fallback: Rule | None = None) -> None:
        self._sidecars = {folder.rstrip("/"): sidecar for folder, sidecar in sidecars.items()}
        self._fallback = fallback or Rule()

    def rule_for(self, key: str) -> Rule:
        """Return the rule that answers for the object `key`."""
        for folder in ancestors(key):
            sidecar = self._sidecars.get(folder)
            if sidecar is None:
                continue
            for rule in sidecar.rules:
                if fnmatchcase(_relative(key, folder), rule.match):
                    return self._completed(rule)
        return self._fallback

    def idle_rules(self, keys: Collection[str]) -> Iterator[str]:
        """Say of each rule whose pattern fits none of the objects that it does not."""
        for folder, sidecar in self._sidecars.items():
            below = [_relative(key, folder) for key in keys if folder in ancestors(key)]
            for rule in sidecar.rules:
                if not any(fnmatchcase(key, rule.match) for key in below):
                    yield f"{folder}/{SIDECAR_NAME}: no image below that folder fits the rule match: {rule.match!r}."

    def specimen_for(self, key: str) -> str:
        """Return the specimen that `key` shows."""
        return specimen_of(key, self.rule_for(key).specimen)

    def _completed(self, rule: Rule) -> Rule:
        open_fields = {
            name: getattr(self._fallback, name)
            for name in Rule.model_fields
            if name not in rule.model_fields_set and name in self._fallback.model_fields_set
        }
        return rule.model_copy(update=open_fields)


def _relative(key: str, folder: str) -> str:
    return key.removeprefix(folder).lstrip("/")


def ancestors(key: str) -> Iterable[str]:
    """Yield the folders that the object `key` lies in, the nearest first and the bucket, ``""``, last."""
    for parent in PurePosixPath(key).parents:
        yield "" if str(parent) == "." else str(parent)


def sidecar_text(data: bytes, source: str) -> str:
    """Return what the bytes of a sidecar say.

    Raises
    ------
    ConfigurationError
        If they are not UTF-8: names in another encoding would match nothing.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source} is not UTF-8 ({error}); save it as UTF-8.") from error
