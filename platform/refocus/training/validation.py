"""What an evaluation reads: the held-out split of a dataset version, or a folder of images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np

from refocus.data.dataset import DatasetVersion
from refocus.data.sidecar import SIDECAR_NAME, Answers, Sidecar, sidecar_text
from refocus.data.splits import Split, is_image, split_of
from refocus.data.tiles import Tile, drawn
from refocus.errors import DatasetIncomplete, InputError
from refocus.io.microscopy import ImageSource, open_image
from refocus.io.zarr import zarr_roots
from refocus.model.blanks import find_blanks
from refocus.model.calibration import FEWEST_SPECIMENS
from refocus.model.checkpoint import ModelPackage
from refocus.model.colors import modality_seen, only_channel
from refocus.model.evaluation import EvaluationReport
from refocus.training.baselines import Baseline
from refocus.training.evaluate import Progress, evaluate
from refocus.training.methods import check_seams, network_method
from refocus.training.scenes import SMALLEST_FIELD_PX, SceneSettings, SharpImage
from refocus.training.series import Image, MeasuredPlane
from refocus.training.trust import with_calibration
from refocus.zstack import Modality

#: Seconds, not minutes: what promotion asks on two cores.
QUICK = SceneSettings(defocus_um=(0.0, 2.0, 4.0, 8.0), photons=(1500.0,), field_px=SMALLEST_FIELD_PX)
#: Share of the normalised range that a tile's contrast must reach; empty fields say nothing about sharpness.
_LEAST_CONTRAST = 0.08
#: Share of an image that is padding or overlay from which on that is worth a word.
_LEAST_BLANK = 0.002

T = TypeVar("T")
_log = logging.getLogger(__name__)


def report_on_split(
    package: ModelPackage,
    version: DatasetVersion,
    *,
    split: Split = "validation",
    quick: bool = False,
    others: dict[str, ModelPackage] | None = None,
    baselines: Sequence[Baseline] = (),
    progress: Progress | None = None,
) -> EvaluationReport:
    """Evaluate a package on a held-out split of a dataset version.

    Equal versions and settings give equal scenes, so two packages' reports compare pair by pair. With ``quick`` it is
    12 sharp images at 4 depths and 16 measured tiles, about 20 s on two cores; else 48, at all depths and exposures.

    Parameters
    ----------
    package : ModelPackage
    version : DatasetVersion
    split : {'validation', 'calibration', 'train'}
    quick : bool
    others : dict of name to ModelPackage, optional
        Rows beside the judged one, such as the champion.
    baselines : sequence of Baseline
        Classical methods, which take much longer than networks.
    progress : callable, optional

    Raises
    ------
    DatasetIncomplete
        If the split has no tile of the package's modality with anything on it.
    """
    modality = package.config.modality
    images = sharp_tiles(version.tiles(split, modalities=[modality]), most=12 if quick else 48)
    planes = measured_tiles(version.tiles(split, modalities=[modality]), most=16 if quick else 200)
    if not images and not planes:
        raise DatasetIncomplete(
            f"{version.uri} has no {split} tile of {modality} with structure on it; ingest more specimens, or choose "
            "a model of a modality that is there."
        )
    plain = {
        name: network_method(each, check=False)
        for name, each in ({package.config.name: package} | (others or {})).items()
    }
    methods = plain if quick else plain | {package.config.name: network_method(package)}
    return evaluate(
        methods,
        images,
        QUICK if quick else SceneSettings(),
        planes=planes,
        model=package.config.name,
        digest=package.digest,
        baselines=baselines,
        source=f"{version.uri}, {split} split: {len(images)} sharp images, {len(planes)} measured tiles",
        seam=None if quick else check_seams(package),
        timed=plain,
        progress=progress,
    )


def calibrated_on_split(
    package: ModelPackage, version: DatasetVersion, *, split: Split = "calibration", most: int = 24
) -> ModelPackage:
    """Return the package with intervals calibrated on a dataset version's calibration split; seconds a specimen.

    Raises
    ------
    DatasetIncomplete
        If fewer than 5 specimens of the package's modality have a sharp image there: of z-stacks alone the blur is not
        known in pixels, and the plane that stands for the truth has noise of its own.
    """
    modality = package.config.modality
    images = sharp_tiles(version.tiles(split, modalities=[modality]), most=most)
    if len(images) < FEWEST_SPECIMENS:
        raise DatasetIncomplete(
            f"{version.uri} has {len(images)} specimens with sharp images of {modality} in its {split} split, and "
            f"intervals are fitted on {FEWEST_SPECIMENS} or more (z-stacks do not count); ingest more specimens."
        )
    return with_calibration(package, images)


def sharp_tiles(tiles: Iterable[Tile], *, most: int) -> list[SharpImage]:
    """Return the liveliest sharp tile of each specimen, evenly over the specimens in the order of the shards."""
    best: dict[str, tuple[float, Tile]] = {}
    for tile in tiles:
        if tile.kind != "sharp" or min(tile.pixels.shape[1:]) < SMALLEST_FIELD_PX:
            continue
        contrast = float(np.std(tile.pixels.astype(np.float32))) / max(tile.scale, 1e-12)
        if contrast > max(_LEAST_CONTRAST, best.get(tile.specimen, (0.0,))[0]):
            best[tile.specimen] = (contrast, tile)
    return evenly(
        [SharpImage(t.pixels, t.specimen, t.modality, f"{t.source}@{t.y_px},{t.x_px}") for _, t in best.values()],
        most,
    )


def measured_tiles(tiles: Iterable[Tile], *, most: int) -> list[MeasuredPlane]:
    """Return tiles `drawn` from those measured, with their in-focus targets; no in-focus plane meets itself."""
    fit = (
        tile
        for tile in tiles
        if tile.kind == "pair"
        and tile.target is not None
        and not tile.is_its_own_target
        and float(np.std(tile.target, dtype=np.float32)) > _LEAST_CONTRAST * tile.scale
    )
    return [_measured_plane(tile) for tile in drawn(fit, most, index=lambda tile: tile.index)]


def sharp_images_in(folder: Path, split: Split | None) -> list[SharpImage]:
    """Read the sharp images of a folder that belong to a split, by the rules that ingest follows.

    An ``acquisition.yaml`` (:mod:`refocus.data.sidecar`) says which specimen an image shows, what its file leaves open,
    and what to ignore; its `axes` and `minimum_sharpness` count in ingest alone. Each channel and time is an image of
    its own. Focal series are left out, and a warning says how many; another names each file that cannot be read, and
    each image that is too small, constant or not finite. Of images with padding or overlays
    (:mod:`refocus.model.blanks`) it is said that they count as specimen.

    Parameters
    ----------
    folder : Path
        Of files, or of an OME-Zarr.
    split : {'validation', 'calibration', 'train'} or None
        None takes all.

    Raises
    ------
    ConfigurationError
        If a sidecar is not understood.
    """
    found = []
    series = []
    answers = _answers_in(folder)
    for path in _images_in(folder):
        key = path.relative_to(folder).as_posix() if path != folder else folder.name
        rule, specimen = answers.rule_for(key), answers.specimen_for(key)
        if rule.ignore or (split is not None and split_of(specimen) != split):
            continue
        try:
            place = path if path.is_dir() else path.read_bytes()
            with open_image(place, name=str(path), answers=rule.acquisition()) as source:
                if source.size("Z") > 1:
                    series.append(path)
                    continue
                fields = list(_fields_of(source))
        except InputError as error:
            _log.warning("left out: %s", error)
            continue
        for part, modality, pixels in fields:
            try:
                found.append(SharpImage(pixels, specimen, modality, key + part))
            except InputError as error:
                _log.warning("left out: %s", error)
    if series:
        _log.warning(
            "%d images of %s hold several z-planes and are left out, such as %s: a focal series is no sharp image. "
            "Evaluate series as such (--stacks).",
            len(series), folder, series[0].name,
        )  # fmt: skip
    painted = [image.source for image in found if find_blanks(image.pixels).over(image.pixels).mean() > _LEAST_BLANK]
    if painted:
        _log.warning(
            "padding or overlays will be blurred like specimen in %d of %d images of %s, such as %s; crop them.",
            len(painted), len(found), folder, painted[0],
        )  # fmt: skip
    return found


def _images_in(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    groups = {Path(root) for root in zarr_roots(path.as_posix() for path in files)}
    images = {path for path in files if is_image(path.name) and groups.isdisjoint(path.parents)}
    return sorted(images | groups)


def _answers_in(folder: Path) -> Answers:
    found = {}
    for path in sorted(folder.rglob(SIDECAR_NAME)):
        place = path.parent.relative_to(folder).as_posix()
        text = sidecar_text(path.read_bytes(), str(path))
        found["" if place == "." else place] = Sidecar.parse(text, source=str(path))
    return Answers(found)


def _fields_of(source: ImageSource) -> Iterator[tuple[str, Modality, Image]]:
    """Each channel at each time, [C, Y, X], after what its name is told apart by and what it is, as ingest has it."""
    for t, c in product(range(source.size("T")), range(source.size("C"))):
        parts = [f"{axis}={n}" for axis, n in (("t", t), ("c", c)) if source.size(axis.upper()) > 1]
        pixels = source.plane(t=t, c=c)
        pixels = pixels[..., :3] if pixels.ndim == 3 else pixels[..., None]
        modality = source.acquisition_of(c).modality or modality_seen(pixels[None])
        only = only_channel(pixels) if pixels.shape[-1] == 3 else None
        channels = np.moveaxis(pixels, -1, 0)
        yield "#" + ",".join(parts) if parts else "", modality, channels if only is None else channels[only : only + 1]


def evenly(items: list[T], most: int) -> list[T]:
    """Return at most this many, evenly over the list."""
    step = max(1.0, len(items) / most)
    return [items[int(i * step)] for i in range(min(most, len(items)))]


def _measured_plane(tile: Tile) -> MeasuredPlane:
    assert tile.target is not None
    return MeasuredPlane(
        image=tile.pixels.astype(np.float32),
        truth=tile.target.astype(np.float32),
        specimen=tile.specimen,
        modality=tile.modality,
        planes_from_focus=tile.planes_from_focus or 0.0,
        defocus_um=None if tile.defocus_um is None else abs(tile.defocus_um),
    )
