"""From one source to its tiles, with memory bounded by what is read at once and not by the source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from refocus.data.manifest import IngestSettings, QuarantinedSource, SourceObject, SourceSummary
from refocus.data.pairing import Pairing, expected_positions, tilt_of
from refocus.data.series import Series, channels_first
from refocus.data.sidecar import Answers, Rule
from refocus.data.splits import Split, hash_percent, split_of
from refocus.data.survey import Survey, survey
from refocus.data.tiles import Kind, Tile
from refocus.errors import ConfigurationError, InputError, UnsupportedImage, counted
from refocus.focus.measures import DEFAULT_MEASURE
from refocus.focus.plane import as_grey
from refocus.io.grid import TileGrid, Window
from refocus.io.microscopy import ImageSource, open_image
from refocus.io.ranged import RangedObject
from refocus.io.store import ObjectStore
from refocus.io.zarr import ZarrSource
from refocus.model.normalisation import Normalisation, estimate

Image = npt.NDArray[Any]

# A tile whose smoothed structure is below this share of the image's scale is background.
_BACKGROUND_STRUCTURE = 0.03
_NAMED_TILES = 5


@dataclass
class Extraction:
    """The tiles of one source, as an iterator; the rest is complete once it has been exhausted."""

    source: SourceObject
    specimen: str
    split: Split
    quarantined: list[QuarantinedSource]
    tiles: Iterator[Tile] = field(default_factory=lambda: iter(()))
    summaries: list[SourceSummary] = field(default_factory=list)


def extract_source(
    store: ObjectStore, source: SourceObject, answers: Answers, settings: IngestSettings,
    quarantined: list[QuarantinedSource],
) -> Extraction:  # fmt: skip
    """Open one object and return its tiles.

    Parameters
    ----------
    store : ObjectStore
    source : SourceObject
    answers : Answers
    settings : IngestSettings
    quarantined : list
        Takes the parts of the source that are left out, also where in the end none remains.

    Raises
    ------
    InputError
        If the source cannot be used; also while the tiles are taken.
    ObjectChanged
        If the object is no longer the one that the plan saw; likewise.
    """
    rule = answers.rule_for(source.key)
    specimen = answers.specimen_for(source.key)
    extraction = Extraction(source, specimen, split_of(specimen), quarantined)
    extraction.tiles = _Reader(_opened(store, source, rule), extraction, rule, settings).tiles()
    return extraction


def _opened(store: ObjectStore, source: SourceObject, rule: Rule) -> ImageSource:
    try:
        return _opened_with_axes(rule.axes, store, source, rule)
    except ConfigurationError:
        if rule.axes is None:
            raise
        # One answer for a whole folder, and this file has other axes: of it, what it says itself counts.
        return _opened_with_axes(None, store, source, rule)


def _opened_with_axes(axes: str | None, store: ObjectStore, source: SourceObject, rule: Rule) -> ImageSource:
    name, answers = source.key, rule.acquisition()
    if source.kind == "zarr":
        return ZarrSource((store, source.key), name=name, answers=answers, axes=axes, etag=source.etag)
    file: Any = RangedObject(store, source.key, size_bytes=source.size_bytes, etag=source.etag)
    return open_image(file, name=name, answers=answers, axes=axes)


class _Reader:
    """One opened source on its way to tiles."""

    def __init__(self, image: ImageSource, extraction: Extraction, rule: Rule, settings: IngestSettings) -> None:
        self.image = image
        self.extraction = extraction
        self.rule = rule
        self.settings = settings

    def tiles(self) -> Iterator[Tile]:
        """Tiles of every channel and time; one of several that cannot be used is quarantined by itself."""
        read = self.stack_tiles if "Z" in self.image.axes else self.sharp_tiles
        with self.image:
            names = list(self._series())
            for t, c in names:
                name = self._name(t, c)
                try:
                    yield from read(Series(self.image, name, t=t, c=c))
                except InputError as error:
                    if len(names) == 1:
                        raise
                    self._quarantine(name, type(error).__name__, str(error))

    def sharp_tiles(self, series: Series) -> Iterator[Tile]:
        """Tiles of an image that counts as in focus: its defocus will be simulated."""
        thinned = series.thinned(0)
        constants = estimate(thinned)
        grid = TileGrid.over(series.height_px, series.width_px, self.settings.tile_px)
        self._check_sharp(series, grid)
        cutter = _Cutter(self, series, constants)
        kept = dropped = blank = 0
        for rows, columns in grid.blocks(series.window_px):
            around = grid.around(rows, columns)
            block = series.read(0, around)
            for window in (grid.window(row, column) for row in rows for column in columns):
                pixels = block[window.within(around).slices]
                if series.blanks.share(window) > self.settings.maximum_blank_share:
                    blank += 1
                    continue
                if cutter.shows_nothing(pixels) and not cutter.stays(window):
                    dropped += 1
                    continue
                kept += 1
                yield cutter.tile("sharp", window, pixels)
        if blank and not kept:
            raise UnsupportedImage(self._said_of_blank(series, blank))
        if blank:
            self._quarantine(series.name, "BlankTiles", self._said_of_blank(series, blank))
        self._summarise("sharp", series, thinned, tiles=kept, background_tiles_dropped=dropped, blank_tiles=blank)

    def stack_tiles(self, series: Series) -> Iterator[Tile]:
        """Tiles of every plane of a z-stack, each with the same place in the plane where it is in focus."""
        if series.planes < self.settings.minimum_planes:
            raise UnsupportedImage(
                f"{self.image.name} has {series.planes} z-plane{'s' if series.planes > 1 else ''}; training pairs need "
                f"at least {self.settings.minimum_planes}. Is its first axis Z? A sharp single image is stored without "
                "a Z axis."
            )
        seen = survey(series, tile_px=self.settings.tile_px, measure=self.settings.focus_measure or DEFAULT_MEASURE)
        self._check_focus(series, seen)
        thinned = series.thinned(seen.focus.index)
        cutter = _Cutter(self, series, estimate(thinned))
        pairing = Pairing(
            series, seen, self.settings, shows_nothing=cutter.shows_nothing, stays=cutter.stays,
            may_clip=series.modality == "brightfield",
        )  # fmt: skip
        kept = 0
        for pair in pairing.pairs():
            kept += 1
            yield cutter.tile(
                "pair",
                pair.window,
                pair.pixels,
                target=pair.target,
                plane=pair.plane,
                from_focus=pair.planes_from_focus,
            )
        self._quarantine_parts(series, seen, pairing)
        if not kept:
            raise UnsupportedImage(f"{series.name} has no tile that could be paired; its parts are in this list.")
        self._summarise(
            "pair", series, thinned, tiles=kept, background_tiles_dropped=pairing.left_out.background,
            in_focus_plane=seen.focus.position, focus_confidence=seen.focus.confidence,
            focus_at_edge=seen.focus.at_edge, focus_curve=tuple(float(value) for value in seen.focus.curve),
            in_focus_range=(min(pairing.positions), max(pairing.positions)),
            tiles_at_edge=len(pairing.left_out.at_edge), tilt_deg=_tilt_deg(series, seen),
            blank_tiles=pairing.left_out.blank, largest_drift_px=pairing.largest_drift_px,
            largest_residual=pairing.largest_residual,
        )  # fmt: skip

    def _check_focus(self, series: Series, seen: Survey) -> None:
        expected = expected_positions(seen.tiles, seen.focus)
        if seen.focus.at_edge and not ((expected > 0.5) & (expected < series.planes - 1.5)).any():
            if np.ptp(seen.focus.curve) == 0:
                raise UnsupportedImage(
                    f"{series.name} is equally sharp in all its planes: nothing, or saturation, is all that it shows."
                )
            raise UnsupportedImage(
                f"{series.name} is sharpest at plane {seen.focus.index} of 0..{series.planes - 1}, the edge of "
                "its range: the focus may lie outside. Take the series again with more range on that side."
            )

    def _quarantine_parts(self, series: Series, seen: Survey, pairing: Pairing) -> None:
        left, settings = pairing.left_out, self.settings
        if left.blank:
            self._quarantine(series.name, "BlankTiles", self._said_of_blank(series, left.blank))
        for z, first in seen.copies.items():
            self._quarantine(f"{series.name}#z={z}", "DuplicatedPlane", f"plane {z} equals plane {first} to the bit")
        for z, size_px in sorted(left.drifted.items()):
            self._quarantine(
                f"{series.name}#z={z}", "PlaneDrifted",
                f"plane {z} sits {size_px:.1f} px from the in-focus plane; at most {settings.maximum_drift_px} px are "
                "taken for drift of the stage",
            )  # fmt: skip
        for z in sorted(left.unlike):
            self._quarantine(
                f"{series.name}#z={z}", "PlaneUnlike",
                f"on the way from plane {z} to the in-focus plane neighbours share too little to be aligned "
                f"(residual above {settings.maximum_residual})",
            )  # fmt: skip
        for z, count in sorted(left.saturated.items()):
            self._quarantine(
                f"{series.name}#z={z}", "SaturatedTiles",
                f"{count} tiles of plane {z} have more than {settings.maximum_saturated_share:.0%} of their pixels at "
                f"the camera's full scale, {seen.full_scale}",
            )  # fmt: skip
        if left.saturated_targets:
            self._quarantine(
                series.name, "SaturatedTiles",
                f"{series.name}: {left.saturated_targets} tiles are saturated where they are in focus (more than "
                f"{settings.maximum_saturated_share:.0%} of their pixels at {seen.full_scale}); take the series again "
                "with less light",
            )  # fmt: skip
        if left.at_edge:
            corners = (series.in_file(window) for window in left.at_edge[:_NAMED_TILES])
            some = ", ".join(f"({corner.y_px}, {corner.x_px})" for corner in corners)
            self._quarantine(
                series.name, "FocusAtEdge",
                f"{series.name}: {len(left.at_edge)} tiles are sharpest at the first or last plane, so their focus may "
                f"lie outside; their upper left corners (y, x): {some}{', ...' * bool(left.at_edge[_NAMED_TILES:])}",
            )  # fmt: skip

    def _said_of_blank(self, series: Series, tiles: int) -> str:
        return (
            f"{series.name}: more than {self.settings.maximum_blank_share:.0%} of {counted(tiles, 'tile')} shows no "
            f"specimen but padding, overlays or defective pixels ({series.blanks.said}); crop the image, or export it "
            "without them."
        )

    def _check_sharp(self, series: Series, grid: TileGrid) -> None:
        limit = self.rule.minimum_sharpness
        if limit is None:
            return
        blocks = [grid.around(*block) for block in grid.blocks(series.window_px)]
        found = sharpness(as_grey(series.read(0, window)) for window in blocks)
        if found < limit:
            raise UnsupportedImage(
                f"{self.image.name} has sharpness {found:.4g}, below the {limit:.4g} that its folder's rule asks for: "
                "as a target it would teach networks to leave blur in."
            )

    def _series(self) -> Iterator[tuple[int, int]]:
        for t in range(self.image.size("T")):
            for c in range(self.image.size("C")):
                yield t, c

    def _name(self, t: int, c: int) -> str:
        parts = [f"{axis}={n}" for axis, n in (("t", t), ("c", c)) if self.image.size(axis.upper()) > 1]
        return self.extraction.source.key + ("#" + ",".join(parts) if parts else "")

    def _quarantine(self, source: str, error: str, reason: str) -> None:
        self.extraction.quarantined.append(QuarantinedSource(source=source, error=error, reason=reason))

    def _summarise(self, kind: Kind, series: Series, thinned: Image, **found: Any) -> None:
        top = np.iinfo(thinned.dtype).max if thinned.dtype.kind == "u" else np.inf
        inside = series.blanks.inside
        is_cut = inside.size_px < self.image.size("Y") * self.image.size("X")
        self.extraction.summaries.append(
            SourceSummary(
                source=series.name,
                specimen=self.extraction.specimen,
                split=self.extraction.split,
                kind=kind,
                modality=series.modality,
                modality_assumed=series.modality_assumed,
                shape=self.image.shape,
                axes=self.image.axes,
                saturated_share=float(np.mean(thinned >= top)),
                blanks=series.blanks.said,
                inside_px=(inside.y_px, inside.x_px, inside.height_px, inside.width_px) if is_cut else None,
                **found,
            )
        )


class _Cutter:
    """What all tiles of one series share."""

    def __init__(self, reader: _Reader, series: Series, constants: Normalisation) -> None:
        said = series.acquisition
        self._name = series.name
        self._in_file = series.in_file
        self._constants = constants
        self._background_share = reader.settings.background_share
        self._z_step_um = said.z_step_um
        self._target: tuple[Image | None, Image | None] = (None, None)
        self._shared: dict[str, Any] = {
            "source": series.name,
            "specimen": reader.extraction.specimen,
            "modality": series.modality,
            "offset": constants.offset,
            "scale": constants.scale,
            "pixel_size_um": said.pixel_size_um,
            "numerical_aperture": said.numerical_aperture,
            "wavelength_um": said.wavelength_um,
            "refractive_index": said.refractive_index,
        }

    def tile(
        self, kind: Kind, window: Window, pixels: Image, *, target: Image | None = None, plane: int | None = None,
        from_focus: float | None = None,
    ) -> Tile:  # fmt: skip
        if target is not self._target[0]:
            # One array for all planes of a tile: whoever writes them writes it once.
            self._target = (target, None if target is None else channels_first(target))
        place = self._in_file(window)
        return Tile(
            kind=kind,
            pixels=channels_first(pixels),
            target=self._target[1],
            y_px=place.y_px,
            x_px=place.x_px,
            plane=plane,
            planes_from_focus=from_focus,
            defocus_um=None if from_focus is None or self._z_step_um is None else from_focus * self._z_step_um,
            **self._shared,
        )

    def shows_nothing(self, pixels: Image) -> bool:
        normalised = (as_grey(pixels) - np.float32(self._constants.offset)) / np.float32(self._constants.scale)
        # Smoothing takes the noise away: what still varies is specimen.
        return bool(ndimage.gaussian_filter(normalised.astype(np.float32), 2.0).std() < _BACKGROUND_STRUCTURE)

    def stays(self, window: Window) -> bool:
        """Whether this background tile is among the few that stay; the same ones on every run."""
        place = self._in_file(window)
        return hash_percent(f"{self._name}|{place.y_px}|{place.x_px}") < 100 * self._background_share


def _tilt_deg(series: Series, seen: Survey) -> float | None:
    said, tilt = series.acquisition, tilt_of(seen.tiles)
    if tilt is None or said.z_step_um is None or said.pixel_size_um is None:
        return None
    return tilt.angle_deg(z_step_um=said.z_step_um, pixel_size_um=said.pixel_size_um)


def sharpness(parts: Iterator[Image]) -> float:
    """Mean squared Laplacian of an image over its mean, smoothed by one pixel: compare within one kind of image.

    Parameters
    ----------
    parts : iterator of ndarray, shape (rows, columns)
        The image, or the parts that it was divided into.
    """
    energy = total = pixels = 0.0
    for part in parts:
        smooth = ndimage.gaussian_filter(part.astype(np.float64), 1.0)
        energy += float(np.square(ndimage.laplace(smooth)).sum())
        total += float(part.sum(dtype=np.float64))
        pixels += part.size
    return 0.0 if total <= 0 else energy * pixels / total**2
