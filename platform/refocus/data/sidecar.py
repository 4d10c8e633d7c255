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
itself always wins over a rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refocus.data.splits import DEFAULT_SPECIMEN_PATTERN, specimen_of
from refocus.errors import ConfigurationError
from refocus.zstack import Acquisition, Modality

SIDECAR_NAME = "acquisition.yaml"


class Rule(BaseModel):
    """Answers for the objects that `match` a shell pattern."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: str = "*"
    ignore: bool = False
    modality: Modality | None = None
    axes: str | None = None
    pixel_size_um: float | None = Field(default=None, gt=0)
    z_step_um: float | None = Field(default=None, gt=0)
    numerical_aperture: float | None = Field(default=None, gt=0, lt=1.7)
    wavelength_um: float | None = Field(default=None, gt=0)
    refractive_index: float | None = Field(default=None, ge=1, lt=2)
    specimen: str = DEFAULT_SPECIMEN_PATTERN
    minimum_sharpness: float | None = Field(default=None, ge=0)

    def acquisition(self) -> Acquisition:
        """Return the rule's answers; None where it has none."""
        return Acquisition(**{name: getattr(self, name) for name in Acquisition.__slots__})


class Sidecar(BaseModel):
    """The rules of one ``acquisition.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[Rule, ...]

    @classmethod
    def parse(cls, text: bytes, *, source: str) -> Sidecar:
        """Read YAML.

        Raises
        ------
        ConfigurationError
            If the text is no YAML or has keys that are not known.
        """
        try:
            return cls.model_validate(yaml.safe_load(text))
        except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{source} is not a valid sidecar: {error}\nExpected 'rules:' with a list of "
                f"{{{', '.join(Rule.model_fields)}}}."
            ) from error


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
        for folder in _ancestors(key):
            sidecar = self._sidecars.get(folder)
            if sidecar is None:
                continue
            relative = key.removeprefix(folder).lstrip("/")
            for rule in sidecar.rules:
                if fnmatchcase(relative, rule.match):
                    return self._completed(rule)
        return self._fallback

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


def _ancestors(key: str) -> Iterable[str]:
    for parent in PurePosixPath(key).parents:
        yield "" if str(parent) == "." else str(parent)
