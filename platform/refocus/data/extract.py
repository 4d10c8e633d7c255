"""From one source to its tiles: plain NumPy over an opened file, two planes in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from refocus.data.manifest import IngestSettings, QuarantinedSource, SourceObject, SourceSummary
from refocus.data.sidecar import Answers, Rule
from refocus.data.splits import Split, hash_percent, split_of
from refocus.data.tiles import Kind, Tile, Window, tile_windows
from refocus.errors import UnsupportedImage
from refocus.focus.alignment import align, shifts_along
from refocus.focus.plane import InFocusPlane, focus_curve, peak_of
from refocus.io.microscopy import ImageSource, check_finite, open_image
from refocus.io.ranged import RangedObject
from refocus.io.store import ObjectStore
from refocus.io.zarr import ZarrSource
from refocus.model.normalisation import Normalisation, estimate
from refocus.zstack import Acquisition, Modality

Image = npt.NDArray[Any]

# A tile whose smoothed structure is below this share of the image's scale is background.
_BACKGROUND_STRUCTURE = 0.03
_STORED_DTYPES = {"u1": "uint8", "u2": "uint16", "f4": "float32", "b1": "uint8"}


@dataclass
class Extraction:
    """The tiles of one source, as an iterator; the rest is complete once it has been exhausted."""

    source: SourceObject
    specimen: str
    split: Split
    tiles: Iterator[Tile] = field(default_factory=lambda: iter(()))
    summaries: list[SourceSummary] = field(default_factory=list)
    quarantined: list[QuarantinedSource] = field(default_factory=list)

    def __iter__(self) -> Iterator[Tile]:
        return self.tiles


def extract_source(store: ObjectStore, source: SourceObject, answers: Answers, settings: IngestSettings) -> Extraction:
    """Open one object and return its tiles.

    What spoils the whole source (unreadable, no structure of planes, nothing in focus) is found before the first
    tile is yielded.

    Raises
    ------
    InputError
        If the source cannot be used.
    ObjectChanged
        If the object is no longer the one that the plan saw.
    """
    rule = answers.rule_for(source.key)
    specimen = answers.specimen_for(source.key)
    extraction = Extraction(source, specimen, split_of(specimen))
    image = _opened(store, source, rule)
    reader = _Reader(image, extraction, rule, settings)
    extraction.tiles = reader.stack_tiles() if "Z" in image.axes else reader.sharp_tiles()
    first = next(extraction.tiles, None)
    if first is not None:
        extraction.tiles = _rejoined(first, extraction.tiles)
    return extraction


def _opened(store: ObjectStore, source: SourceObject, rule: Rule) -> ImageSource:
    if source.kind == "zarr":
        return ZarrSource((store, source.key), name=source.key, answers=rule.acquisition(), axes=rule.axes)
    file: Any = RangedObject(store, source.key, size_bytes=source.size_bytes, etag=source.etag)
    return open_image(file, name=source.key, answers=rule.acquisition(), axes=rule.axes)


def _rejoined(first: Tile, rest: Iterator[Tile]) -> Iterator[Tile]:
    yield first
    yield from rest


class _Reader:
    """One opened source on its way to tiles."""

    def __init__(self, image: ImageSource, extraction: Extraction, rule: Rule, settings: IngestSettings) -> None:
        self.image = image
        self.extraction = extraction
        self.rule = rule
        self.settings = settings
        said = image.acquisition.modality
        self.modality: Modality = said or ("brightfield" if "S" in image.axes else "fluorescence")
        self.modality_assumed = said is None
        self.dropped = 0
        self.kept = 0

    def sharp_tiles(self) -> Iterator[Tile]:
        """Tiles of an image that counts as in focus: its defocus will be simulated."""
        with self.image:
            for t, c in self._series():
                plane = self._plane(0, c, t)
                self._check_sharp(plane)
                constants = estimate(plane)
                self.kept = self.dropped = 0
                yield from self._cut("sharp", plane, None, constants, name=self._name(t, c))
                self._summarise("sharp", plane, t, c)

    def stack_tiles(self) -> Iterator[Tile]:
        """Tiles of every plane of a z-stack, each with the in-focus plane at the same place."""
        planes = self.image.size("Z")
        if planes < self.settings.minimum_planes:
            raise UnsupportedImage(
                f"{self.image.name} has {planes} z-plane{'s' if planes > 1 else ''}; training pairs need at least "
                f"{self.settings.minimum_planes}. Is its first axis Z? A sharp single image is stored without a Z axis."
            )
        with self.image:
            found = [(t, c, self._focus(t, c)) for t, c in self._series()]
            for t, c, focus in found:
                yield from self._pairs(t, c, focus)

    def _focus(self, t: int, c: int) -> InFocusPlane:
        curve = focus_curve(
            (_grey(self._plane(z, c, t)) for z in range(self.image.size("Z"))),
            **({"measure": self.settings.focus_measure} if self.settings.focus_measure else {}),
        )
        focus = peak_of(curve)
        if focus.at_edge:
            raise UnsupportedImage(
                f"{self._name(t, c)} is sharpest at plane {focus.index} of 0..{self.image.size('Z') - 1}, the edge of "
                "its range: the focus may lie outside. Take the series again with more range on that side."
            )
        return focus

    def _pairs(self, t: int, c: int, focus: InFocusPlane) -> Iterator[Tile]:
        target = self._plane(focus.index, c, t)
        constants = estimate(target)
        name = self._name(t, c)
        self.kept = self.dropped = 0
        drift, residuals = [0.0], [0.0]
        before: Image | None = None
        shifts = shifts_along((_grey(self._plane(z, c, t)) for z in range(self.image.size("Z"))), focus.index)
        for z in range(self.image.size("Z")):
            plane = self._plane(z, c, t)
            if before is not None and np.array_equal(plane, before):
                self._quarantine(f"{name}#z={z}", "DuplicatedPlane", f"plane {z} equals plane {z - 1} to the bit")
                continue
            before = plane
            if z != focus.index:
                shift = shifts[z]
                size_px = float(np.hypot(shift.y_px, shift.x_px))
                if size_px > self.settings.maximum_drift_px:
                    self._quarantine(
                        f"{name}#z={z}", "PlaneDrifted",
                        f"plane {z} sits {size_px:.1f} px from the in-focus plane; at most "
                        f"{self.settings.maximum_drift_px} px are taken for drift of the stage",
                    )  # fmt: skip
                    continue
                plane = align(plane, shift)
                drift.append(size_px)
                residuals.append(float(shift.residual))
            yield from self._cut("pair", plane, target, constants, name=name, z=z, focus=focus)
        self._summarise("pair", target, t, c, focus=focus, drift_px=max(drift), residual=max(residuals))

    def _cut(
        self, kind: Kind, plane: Image, target: Image | None, constants: Normalisation, *, name: str,
        z: int | None = None, focus: InFocusPlane | None = None,
    ) -> Iterator[Tile]:  # fmt: skip
        said: Acquisition = self.image.acquisition
        structure = _structure(_grey(plane if target is None else target), constants)
        from_focus = None if z is None or focus is None else z - focus.position
        for window in tile_windows(plane.shape[0], plane.shape[1], self.settings.tile_px):
            if structure[window.slices].std() < _BACKGROUND_STRUCTURE and not self._keeps(name, window):
                self.dropped += 1
                continue
            self.kept += 1
            yield Tile(
                source=name,
                specimen=self.extraction.specimen,
                modality=self.modality,
                kind=kind,
                pixels=_channels_first(plane, window),
                target=None if target is None else _channels_first(target, window),
                offset=constants.offset,
                scale=constants.scale,
                y_px=window.y_px,
                x_px=window.x_px,
                plane=z,
                planes_from_focus=from_focus,
                defocus_um=None if from_focus is None or said.z_step_um is None else from_focus * said.z_step_um,
                pixel_size_um=said.pixel_size_um,
                numerical_aperture=said.numerical_aperture,
                wavelength_um=said.wavelength_um,
                refractive_index=said.refractive_index,
            )

    def _keeps(self, name: str, window: Window) -> bool:
        """Whether this background tile is among the few that stay; the same ones on every run."""
        return hash_percent(f"{name}|{window.y_px}|{window.x_px}") < 100 * self.settings.background_share

    def _check_sharp(self, plane: Image) -> None:
        limit = self.rule.minimum_sharpness
        if limit is not None and (found := sharpness(_grey(plane))) < limit:
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

    def _plane(self, z: int, c: int, t: int) -> Image:
        plane = self.image.plane(z=z, c=c, t=t)
        check_finite(plane, f"{self._name(t, c)} plane {z}")
        if plane.ndim == 3 and plane.shape[2] != 3:
            raise UnsupportedImage(f"{self.image.name} has {plane.shape[2]} colour samples; expected 3 (RGB).")
        stored = _STORED_DTYPES.get(plane.dtype.str[1:], "float32")
        return plane.astype(stored, copy=False)

    def _quarantine(self, source: str, error: str, reason: str) -> None:
        self.extraction.quarantined.append(QuarantinedSource(source=source, error=error, reason=reason))

    def _summarise(
        self, kind: Kind, plane: Image, t: int, c: int, *, focus: InFocusPlane | None = None,
        drift_px: float | None = None, residual: float | None = None,
    ) -> None:  # fmt: skip
        top = np.iinfo(plane.dtype).max if plane.dtype.kind == "u" else np.inf
        self.extraction.summaries.append(
            SourceSummary(
                source=self._name(t, c),
                specimen=self.extraction.specimen,
                split=self.extraction.split,
                kind=kind,
                modality=self.modality,
                modality_assumed=self.modality_assumed,
                shape=self.image.shape,
                axes=self.image.axes,
                tiles=self.kept,
                background_tiles_dropped=self.dropped,
                in_focus_plane=None if focus is None else focus.position,
                focus_confidence=None if focus is None else focus.confidence,
                focus_at_edge=None if focus is None else focus.at_edge,
                focus_curve=() if focus is None else tuple(float(value) for value in focus.curve),
                largest_drift_px=drift_px,
                largest_residual=residual,
                saturated_share=float(np.mean(plane >= top)),
            )
        )


def sharpness(image: Image) -> float:
    """Mean squared Laplacian of the image over its mean, smoothed by one pixel: compare within one kind of image."""
    mean = float(image.mean())
    if mean <= 0:
        return 0.0
    return float(np.mean(np.square(ndimage.laplace(ndimage.gaussian_filter(image.astype(np.float64) / mean, 1.0)))))


def _grey(plane: Image) -> Image:
    return plane if plane.ndim == 2 else plane.mean(axis=2)


def _structure(image: Image, constants: Normalisation) -> npt.NDArray[np.float32]:
    # Smoothing takes the noise away: what still varies is specimen.
    return ndimage.gaussian_filter(((image - constants.offset) / constants.scale).astype(np.float32), 2.0)


def _channels_first(plane: Image, window: Window) -> Image:
    tile = plane[window.slices]
    return tile[None] if tile.ndim == 2 else np.moveaxis(tile, 2, 0)
