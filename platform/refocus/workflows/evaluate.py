"""``refocus evaluate`` and ``jobs/evaluate.py``: read images, measure, write ``evaluation.json`` and ``.html``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from rich.console import Console

from refocus.data.dataset import DatasetVersion
from refocus.data.sidecar import SIDECAR_NAME
from refocus.data.splits import Split
from refocus.errors import ConfigurationError, InputError, ModelMissing, UnsupportedImage
from refocus.io.microscopy import open_image
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.io.zarr import is_zarr
from refocus.model.checkpoint import ModelPackage, bundled_names
from refocus.model.evaluation import EvaluationReport
from refocus.optics.ladder import nearest_profile
from refocus.optics.limits import APERTURE
from refocus.optics.settings import OpticalSystem
from refocus.training.baselines import BASELINES
from refocus.training.evaluate import Progress, evaluate
from refocus.training.methods import check_seams, network_method
from refocus.training.report import examples_of, gain_table, html_report, markdown_table, series_table, trust_table
from refocus.training.scenes import SMALLEST_FIELD_PX, SceneSettings, SharpImage
from refocus.training.series import MeasuredPlane, planes_of, thinned
from refocus.training.trust import (
    GATE_SYSTEMS,
    OTHER_SYSTEMS,
    gate_for,
    operating_point,
    with_calibration,
    with_shipped_gate,
)
from refocus.training.validation import QUICK, calibrated_on_split, evenly, report_on_split, sharp_images_in
from refocus.wire.files import check_target, naming, write_whole
from refocus.zstack import MODALITIES, Modality, ZStack

EXAMPLES = 3
_LEAST_SIDE_PX = 96
CALIBRATION_IMAGES = 80
#: Of fluorescence and of brightfield: enough for the gate's 231 weights, minutes on one core.
GATE_IMAGES = (130, 40)

Scope = Literal["standard", "quick", "wide"]
_SCENES: dict[Scope, SceneSettings] = {
    "standard": SceneSettings(),
    "quick": QUICK,
    "wide": SceneSettings(photons=(1500.0,), field_px=SMALLEST_FIELD_PX),
}


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """What is measured, on what.

    Parameters
    ----------
    models : tuple of str
        Names of bundled models or folders of packages; the first is judged. None measures the baselines alone.
    out : Path
        Folder of the report; an earlier one there is replaced.
    dataset : str or None
        A dataset version; or else
    images, stacks : Path or None
        A folder of sharp images; a focal series, or a folder of them.
    split : {'validation', 'calibration', 'train'} or None
        None takes all images, which is right where none of them was trained on.
    scope : {'standard', 'quick', 'wide'}
        Two exposures and fields of 256 px; few depths, seconds; every specimen once, with 1500 photons and 176 px.
    classical : bool
        With unsharp mask, Wiener and Richardson-Lucy: minutes.
    baselines_from : Path or None
        An earlier ``evaluation.json`` whose classical rows are taken over instead: they do not change with the model.
    calibrate : Path or None
        First fit the judged package's intervals on the calibration split of `images` or `dataset`, give it the shipped
        gate, and save it with its evaluation into this folder.
    objective : sequence of float or None
        Aperture, um a pixel and, if it is not green, um of the light through which sharp images are seen, at distances
        that blur as many pixels as the usual ones do; None is a 20x 0.75 objective on 6.5 um pixels. Not with a
        dataset.
    tell_optics : bool
        Whether models are told the objective, as OME files tell it.
    most : int
        At most this many sharp images of each modality of a folder; ``'wide'`` takes all.
    """

    models: tuple[str, ...]
    out: Path
    dataset: str | None = None
    images: Path | None = None
    stacks: Path | None = None
    split: Split | None = "validation"
    scope: Scope = "standard"
    classical: bool = False
    baselines_from: Path | None = None
    calibrate: Path | None = None
    objective: Sequence[float] | None = None
    tell_optics: bool = False
    most: int = 24

    @property
    def scenes(self) -> SceneSettings:
        """What sharp images are seen through."""
        usual = _SCENES[self.scope]
        if self.objective is None:
            return usual
        system = _system(self.objective)
        blurs = (usual.system.blur_radius_px(distance) for distance in usual.defocus_um)
        distances = tuple(round(system.defocus_um_for(blur), 2) for blur in blurs)
        return usual.model_copy(update={"system": system, "defocus_um": distances})

    @property
    def told(self) -> OpticalSystem | None:
        """The objective as models are told it, None where they are not."""
        return self.scenes.system if self.tell_optics else None


def evaluate_and_write(options: EvaluationOptions, console: Console) -> EvaluationReport:
    """Evaluate packages and write the report.

    What cannot be measured of a folder is left out and named.
    """
    places = [options.out] if options.calibrate is None else [options.out, options.calibrate]
    for folder in places:
        check_target(folder / "evaluation.json", overwrite=True)
    packages = [open_package(name) for name in options.models]
    version = None
    if options.dataset is not None:
        version = DatasetVersion.open(ObjectStore(StoreSettings.from_environment()), options.dataset)
    if version is not None and (options.objective is not None or options.tell_optics):
        raise ConfigurationError("a dataset is measured through the usual objective; give a folder of images instead.")
    if options.calibrate is not None:
        if not packages:
            raise InputError("no model was named; there is nothing to calibrate (--model).")
        console.print(f"  calibrating {packages[0].config.name} on the calibration split")
        packages[0] = _trusted(packages[0], version, options.images, console)
    rows = _rows(packages)
    if version is not None:
        sharp: list[SharpImage] = []
        report = _on_dataset(rows, version, options, _progress(console))
    else:
        sharp, planes = _from_folders(packages, options, console)
        report = _on_images(rows, sharp, planes, options, _progress(console))
    if options.baselines_from is not None:
        earlier = EvaluationReport.model_validate_json(options.baselines_from.read_bytes())
        report = report.with_rows_of(earlier)
    write_whole(options.out / "evaluation.json", report.model_dump_json().encode())
    if options.calibrate is not None:
        replace(packages[0], evaluation=report.model_dump(mode="json")).save(options.calibrate)
        console.print(f"Calibrated package written: {options.calibrate}")
    methods = {name: network_method(package, check=False, optics=options.told) for name, package in rows.items()}
    shown = [] if options.scope == "quick" else evenly(sharp, EXAMPLES)
    page = html_report(report, examples_of(methods, shown, options.scenes))
    write_whole(options.out / "evaluation.html", page.encode())
    _print_tables(report, console)
    console.print(f"\nWritten: {options.out / 'evaluation.html'} and {options.out / 'evaluation.json'}")
    return report


def fit_gate_and_write(out: Path, images: Path | None, console: Console, *, largest_blur_px: float = 34.9) -> None:
    """Fit the gate that ships with Refocus on a folder's training and calibration splits, measure it, write it.

    It looks at the input alone, so images that networks were trained on may serve; those of the validation split
    measure it.

    Raises
    ------
    InputError
        If there are too few images.
    """
    if images is None:
        raise InputError("no images were named to fit a gate on; give --images.")
    check_target(out, overwrite=True)
    fit_on, measured_on = (
        [i for split in splits for i in _sharp_images(images, split, console) if i.holds_a_field]
        for splits in (("train", "calibration"), ("validation",))
    )
    chosen = [
        image
        for name, most in zip(("fluorescence", "brightfield"), GATE_IMAGES, strict=True)
        for image in evenly([i for i in fit_on if i.modality == name], most)
    ]
    tell = _progress(console)
    gate = gate_for(largest_blur_px, chosen, progress=lambda done, total: tell("tiles of the gate", done, total))
    write_whole(out, gate.model_dump_json().encode())
    held = evenly(measured_on, 40)
    console.print(
        f"\nFitted on {len(chosen)} images; share of tiles flagged on {len(held)} others, by blur over the range"
    )
    for system in (*GATE_SYSTEMS, *OTHER_SYSTEMS) if held else ():
        point = operating_point(gate, held, system=system)
        steps = ", ".join(f"{step:g}: {share:.0%}" for step, share in point.flagged.items())
        console.print(
            f"NA {system.numerical_aperture:g}, {system.pixel_size_um:g} um pixels: {steps}; in range "
            f"{point.in_range:.1%}, beyond {point.beyond:.1%}{'' if point.as_asked else ' (asked: 5%, 95%)'}",
            markup=False,
        )
    console.print(f"\nWritten: {out}")


def open_package(name: str) -> ModelPackage:
    """Open a bundled model by name or a package by folder.

    Raises
    ------
    ModelMissing
        If there is neither.
    """
    if name in bundled_names():
        return ModelPackage.bundled(name)
    if not Path(name).is_dir():
        raise ModelMissing(
            f"{name!r} is neither the folder of a package nor a bundled model; those are {', '.join(bundled_names())}."
        )
    return ModelPackage.load(Path(name))


def _system(objective: Sequence[float]) -> OpticalSystem:
    names = ("numerical_aperture", "pixel_size_um", "wavelength_um")
    try:
        system = OpticalSystem.told(**{"pixel_size_um": None} | dict(zip(names, objective, strict=False)))
    except ValidationError as error:
        raise ConfigurationError(f"{list(objective)} is no objective: {error.errors()[0]['msg']}.") from error
    if system is None or len(objective) > len(names):
        raise ConfigurationError(
            f"the objective is {list(objective)}; expected its aperture, um a pixel and, if not green, um of the light."
        )
    if system.numerical_aperture > APERTURE[1] or nearest_profile(system) is None:
        raise ConfigurationError(
            f"the objective is {list(objective)}; expected an aperture of at most {APERTURE[1]} and pixels that "
            "it samples its images with, such as 0.75 0.325."
        )
    return system


def _rows(packages: Sequence[ModelPackage]) -> dict[str, ModelPackage]:
    """Name the rows: by the model, or where two share that, by the recipe or the digest."""
    rows: dict[str, ModelPackage] = {}
    for package in packages:
        names = (package.config.name, str(package.card.get("recipe") or package.digest[:12]), package.digest[:12])
        rows[next((n for n in names if n not in rows), names[-1])] = package
    return rows


def _on_dataset(
    rows: dict[str, ModelPackage], version: DatasetVersion, options: EvaluationOptions, progress: Progress
) -> EvaluationReport:
    if not rows or options.split is None:
        raise InputError("a dataset is evaluated for a model and on one of its splits; name both (--model, --split).")
    judged, *others = rows
    return report_on_split(
        rows[judged],
        version,
        split=options.split,
        quick=options.scope == "quick",
        others={name: rows[name] for name in others},
        baselines=BASELINES if options.classical else (),
        progress=progress,
    )


def _on_images(
    rows: dict[str, ModelPackage],
    sharp: Sequence[SharpImage],
    planes: Sequence[MeasuredPlane],
    options: EvaluationOptions,
    progress: Progress,
) -> EvaluationReport:
    judged = next(iter(rows.values()), None)
    of = f"of the {options.split} split" if options.split else "of a folder"
    plain = {name: network_method(package, check=False, optics=options.told) for name, package in rows.items()}
    checked = {
        name: network_method(package, optics=options.told) for name, package in rows.items() if package is judged
    }
    return evaluate(
        plain | checked,
        sharp,
        options.scenes,
        planes=planes,
        digest=judged.digest if judged is not None else None,
        baselines=BASELINES if options.classical else (),
        source=f"{len(sharp)} sharp images {of}, {len(planes)} planes of measured focal series",
        notes=("models were told the optics",) if options.told is not None else (),
        seam=check_seams(judged) if judged is not None and options.scope != "quick" else None,
        timed=plain,
        progress=progress,
    )


def _trusted(
    package: ModelPackage, version: DatasetVersion | None, images: Path | None, console: Console
) -> ModelPackage:
    """Fit intervals, and give the shipped gate where it serves the package's range."""
    if version is not None:
        return with_shipped_gate(calibrated_on_split(package, version))
    if images is None:
        raise InputError("no images were named to calibrate on; give --images or --dataset.")
    sharp = [i for i in _sharp_images(images, "calibration", console) if i.holds_a_field]
    progress = _progress(console)
    fitted = with_calibration(
        package,
        evenly([i for i in sharp if i.modality == package.config.modality], CALIBRATION_IMAGES),
        progress=lambda done, total: progress("scenes of the calibration", done, total),
    )
    return with_shipped_gate(fitted)


def _from_folders(
    packages: Sequence[ModelPackage], options: EvaluationOptions, console: Console
) -> tuple[list[SharpImage], list[MeasuredPlane]]:
    modalities = {p.config.modality for p in packages}
    sharp = _sharp_images(options.images, options.split, console) if options.images is not None else []
    sharp = _of_use(sharp, modalities, SMALLEST_FIELD_PX if options.scope == "wide" else _LEAST_SIDE_PX, console)
    if options.scope == "wide":
        kept = sharp
    else:
        # Modality by modality, so that one model and all of them meet the same images.
        kept = [i for name in MODALITIES for i in evenly([i for i in sharp if i.modality == name], options.most)]
    planes: list[MeasuredPlane] = []
    for path in _series_in(options.stacks) if options.stacks is not None else ():
        try:
            with naming(path):
                stack = _series(path)
                # Phase contrast has no model of its own; its series are shown beside the fluorescence ones.
                named = stack.acquisition.modality
                if named is None or not modalities or named in modalities:
                    planes += thinned(planes_of(stack), 16)
        except InputError as error:
            if path == options.stacks:
                raise
            console.print(f"  left out: {error}", markup=False)
    return kept, planes


def _sharp_images(folder: Path, split: Split | None, console: Console) -> list[SharpImage]:
    """Read them, and say how their split is told: an ingest with other answers has dealt them out otherwise."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected one of sharp images.")
    sharp = sharp_images_in(folder, split)
    if split is not None:
        console.print(
            f"  {len(sharp)} images of {folder} are in the {split} split, by their specimens: as {SIDECAR_NAME} there "
            "says, else by file names without channel (_c0, _ch00, _w1). Where an ingest was told otherwise, evaluate "
            "its dataset.",
            markup=False,
        )
    return sharp


def _of_use(sharp: list[SharpImage], modalities: set[Modality], least_px: int, console: Console) -> list[SharpImage]:
    """Leave out what none of the models is for, and what is too small, and say so."""
    kept = [image for image in sharp if not modalities or image.modality in modalities]
    large = [image for image in kept if min(image.pixels.shape[1:]) >= least_px]
    for number, why in (
        (len(sharp) - len(kept), f"not {' or '.join(sorted(modalities))}, which is what the models are for"),
        (len(kept) - len(large), f"smaller than {least_px} px"),
    ):
        if number:
            console.print(f"  left out: {number} image{'s' if number > 1 else ''}: {why}")
    return large


def _series(path: Path) -> ZStack:
    try:
        with open_image(path, axes="ZYX") as source:
            return source.stack(specimen=path.name)
    except ConfigurationError as error:
        raise UnsupportedImage(
            f"{path} is no focal series of one channel; expected three planes or more (axes ZYX). Sharp images are "
            "evaluated by the name of their folder."
        ) from error


def _series_in(place: Path) -> list[Path]:
    if not place.exists():
        raise InputError(f"{place} does not exist; expected a focal series or a folder of them.")
    return [place] if place.is_file() or is_zarr(place) else sorted(place.rglob("*.tif*"))


def _print_tables(report: EvaluationReport, console: Console) -> None:
    """Print what the documentation shows, as Markdown."""
    for modality in report.modalities:
        if any(m.kind == "simulated" and m.modality == modality for m in report.measurements):
            for metric in ("psnr_db", "ssim", "resolution_px"):
                console.print(f"\n{modality}\n" + markdown_table(report, metric, modality), markup=False)
            for table in (trust_table(report, modality), gain_table(report, modality)):
                console.print(f"\n{table}" if table else "", markup=False)
    if planes := [m for m in report.measurements if m.kind == "focal_series"]:
        console.print(f"\nMeasured focal series, {len(planes)} measurements, means over planes")
        console.print(series_table(report, "psnr_db") + "\n\n" + series_table(report, "ssim"), markup=False)


def _progress(console: Console) -> Progress:
    began, last = time.monotonic(), [0.0]

    def tell(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] > 5 or done == total:
            last[0] = now
            console.print(f"  {now - began:5.0f} s  {what}: {done} of {total}")

    return tell
