"""The records of a dataset version: the plan that an ingest follows and the manifest that seals it.

A version is complete when its ``manifest.json`` exists and absent otherwise. ``plan.json`` is written
first and never changes: an ingest that was killed finds it, skips the units whose receipt is there,
and finishes the same version.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from refocus.data.splits import Split
from refocus.errors import ConfigurationError
from refocus.zstack import Modality

FORMAT = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceObject(_Record):
    """One raw image as the plan saw it: an object, or all objects of an OME-Zarr folder."""

    key: str
    size_bytes: int
    etag: str
    kind: Literal["file", "zarr"] = "file"


class IngestSettings(_Record):
    """What shapes the tiles of a version.

    Parameters
    ----------
    tile_px : int
        Side of the square tiles; images smaller than that stay whole.
    minimum_planes : int
        Stacks with fewer planes have no pair worth learning from.
    background_share : float
        Share of tiles without any structure that is kept, so that networks know background too.
    maximum_drift_px : float
        Planes that have drifted further than this from the in-focus plane are quarantined; nearer ones are aligned.
    maximum_residual : float
        Planes that share less with their neighbours than this leaves (`refocus.focus.alignment.Shift`) cannot be
        aligned and are quarantined.
    maximum_saturated_share : float
        Tiles with more pixels than that at the camera's full scale are quarantined, as inputs and as targets; not in
        brightfield, whose empty background is white.
    maximum_blank_share : float
        Tiles of which more is padding, overlay or defective pixels are quarantined; over less than that the specimen
        is continued.
    focus_measure : str or None
        Name of the sharpness measure; None for the default of ``refocus.focus``.
    unit_bytes : int
        Small sources are ingested together up to this many bytes.
    """

    tile_px: int = Field(default=384, ge=32, le=2048)
    minimum_planes: int = Field(default=3, ge=2)
    background_share: float = Field(default=0.1, ge=0, le=1)
    maximum_drift_px: float = Field(default=8.0, gt=0)
    maximum_residual: float = Field(default=0.9, gt=0, le=1)
    maximum_saturated_share: float = Field(default=0.25, ge=0, le=1)
    maximum_blank_share: float = Field(default=0.1, ge=0, le=1)
    focus_measure: str | None = None
    unit_bytes: int = Field(default=8 * 2**20, ge=1)


class QuarantinedSource(_Record):
    """A source, or a part of one, that was left out, and why."""

    source: str
    error: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.reason.startswith(self.source) else f"{self.source}: {self.reason}"


class WorkUnit(_Record):
    """Sources that one task turns into shards; a large stack is a unit by itself."""

    name: str
    sources: tuple[SourceObject, ...]


class IngestPlan(_Record):
    """What a version will be made of, fixed before the first byte is read.

    Parameters
    ----------
    copies : tuple of QuarantinedSource
        Images that are another one byte for byte.
    left_out : tuple of str
        What else lies there and is not taken, one sentence for each reason; no part of what the version is.
    """

    format: int = FORMAT
    raw_prefix: str
    created: AwareDatetime
    settings: IngestSettings
    sidecars: dict[str, str]
    fallback: dict[str, Any]
    units: tuple[WorkUnit, ...]
    copies: tuple[QuarantinedSource, ...] = ()
    left_out: tuple[str, ...] = ()


class Shard(_Record):
    """One Parquet object: tiles of one split and one modality, so that a recipe reads only what it trains on."""

    key: str
    split: Split
    modality: Modality
    rows: int
    size_bytes: int


class SourceSummary(_Record):
    """What became of one source: the numbers that the quality report shows.

    Parameters
    ----------
    in_focus_plane : float or None
        Of the whole plane; tiles are paired with their own.
    in_focus_range : tuple of float or None
        Lowest and highest in-focus plane of the tiles that were used.
    tiles_at_edge : int
        Tiles that are sharpest at the first or last plane: quarantined.
    tilt_deg : float or None
        Of the plane through the tiles' in-focus positions, where spacings are known.
    saturated_share : float
        Of the in-focus plane's pixels.
    blanks : str
        What of it was taken for padding, overlays and defective pixels; empty where nothing was.
    inside_px : tuple of int or None
        First row and column, rows and columns of what was used, where rims were cut off.
    blank_tiles : int
        Tiles that are blank by too much: quarantined.
    """

    source: str
    specimen: str
    split: Split
    kind: str
    modality: Modality
    modality_assumed: bool = False
    shape: tuple[int, ...]
    axes: str
    tiles: int
    background_tiles_dropped: int = 0
    in_focus_plane: float | None = None
    focus_confidence: float | None = None
    focus_at_edge: bool | None = None
    focus_curve: tuple[float, ...] = ()
    tiles_at_edge: int = 0
    in_focus_range: tuple[float, float] | None = None
    tilt_deg: float | None = None
    largest_drift_px: float | None = None
    largest_residual: float | None = None
    saturated_share: float = 0.0
    blanks: str = ""
    inside_px: tuple[int, int, int, int] | None = None
    blank_tiles: int = 0


class Receipt(_Record):
    """What one unit left behind; its existence means that the unit is done."""

    unit: str
    shards: tuple[Shard, ...]
    sources: tuple[SourceSummary, ...]
    quarantined: tuple[QuarantinedSource, ...]
    bytes_read: int
    seconds: float


class DatasetManifest(_Record):
    """A complete, immutable dataset version."""

    format: int = FORMAT
    name: str
    version: str
    raw_prefix: str
    created: AwareDatetime
    settings: IngestSettings
    shards: tuple[Shard, ...]
    sources: tuple[SourceSummary, ...]
    quarantined: int

    @property
    def scattered_specimens(self) -> dict[str, tuple[str, ...]]:
        """The folders of each specimen that came from more than one."""
        folders: dict[str, set[str]] = {}
        for source in self.sources:
            folders.setdefault(source.specimen, set()).add(source.source.rpartition("/")[0])
        return {specimen: tuple(sorted(found)) for specimen, found in sorted(folders.items()) if len(found) > 1}

    def rows(self, split: Split, modalities: Collection[str] | None = None) -> int:
        """Return the number of tiles of `split`."""
        return sum(shard.rows for shard in self._shards_of(split, modalities))

    def keys(self, split: Split, modalities: Collection[str] | None = None) -> tuple[str, ...]:
        """Return the keys of the shards of `split`, in a fixed order."""
        return tuple(sorted(shard.key for shard in self._shards_of(split, modalities)))

    def _shards_of(self, split: Split, modalities: Collection[str] | None) -> Iterator[Shard]:
        for shard in self.shards:
            if shard.split == split and (modalities is None or shard.modality in modalities):
                yield shard


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def checked_name(name: str, what: str) -> str:
    """Return `name` if it can stand in an object key.

    Raises
    ------
    ConfigurationError
        If it has other characters than lower-case letters, digits, ``.``, ``_`` and ``-``.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what} {name!r} cannot stand in an object key; expected 1 to 63 of a-z, 0-9, '.', '_', '-', "
            "starting with a letter or digit."
        )
    return name
