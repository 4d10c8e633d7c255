"""What the registry writes down: versions, aliases, and every move of an alias."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from refocus.errors import ConfigurationError
from refocus.model.golden import GoldenOutput

AliasName = Literal["champion", "challenger"]
ALIASES: tuple[AliasName, ...] = ("champion", "challenger")
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSignature(_Record):
    """What images a version expects."""

    modality: str
    channels: int
    largest_blur_px: float
    pixel_size_um: tuple[float, float] | None = None
    numerical_aperture: tuple[float, float] | None = None


class VersionRecord(_Record):
    """One immutable version: ``version.json``, written last, seals the files beside it.

    Parameters
    ----------
    digest : str
        Of weights and config, as `ModelPackage.digest` computes it.
    files : mapping of str to str
        SHA-256 of every file by name.
    golden : GoldenOutput
        What this version makes of the golden image, to be reproduced wherever it is promoted or served.
    run, dataset, commit : str or None
        Where it comes from.
    """

    format: Literal[1] = 1
    model: str
    digest: Digest
    created: AwareDatetime
    created_by: str
    files: dict[str, str]
    size_bytes: int
    signature: InputSignature
    golden: GoldenOutput
    run: str | None = None
    dataset: str | None = None
    commit: str | None = None


class Failure(_Record):
    """One condition of the gate that did not hold: in words, with both numbers."""

    condition: str
    detail: str

    def __str__(self) -> str:
        return f"{self.condition}: {self.detail}"


class Decision(_Record):
    """What the gate said."""

    against: str
    passed: bool
    failures: tuple[Failure, ...] = ()
    observations: tuple[str, ...] = ()


class Event(_Record):
    """One move of an alias: who, when, why, from, to."""

    sequence: int = Field(ge=1)
    kind: Literal["promote", "rollback"]
    model: str
    alias: AliasName
    from_digest: Digest | None
    to_digest: Digest
    who: str
    when: AwareDatetime
    why: str
    forced: bool = False
    decision: Decision | None = None


class Alias(_Record):
    """A pointer, with the event that moved it here.

    The pointer carries its last event, so a move and its record are one write: nobody can see one without the other.
    """

    digest: Digest
    event: Event


def checked_model_name(name: str) -> str:
    """Return `name`, if it can be part of a key.

    Raises
    ------
    ConfigurationError
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"model name {name!r} does not fit; expected up to 64 of A-Z, a-z, 0-9, '.', '_', '-'."
        )
    return name
