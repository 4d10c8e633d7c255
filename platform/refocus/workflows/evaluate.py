"""``jobs/evaluate.py``: read images, measure, write ``evaluation.json`` and ``evaluation.html``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from refocus.data.dataset import DatasetVersion
from refocus.data.splits import Split
from refocus.errors import InputError
from refocus.io.microscopy import open_image
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.model.checkpoint import ModelPackage, bundled_names
from refocus.model.evaluation import EvaluationReport
from refocus.training.baselines import BASELINES
from refocus.training.evaluate import Progress, evaluate
from refocus.training.methods import check_seams, network_method
from refocus.training.report import examples_of, html_report, markdown_table, series_table
from refocus.training.scenes import SMALLEST_FIELD_PX, SceneSettings, SharpImage
from refocus.training.series import MeasuredPlane, planes_of, thinned
from refocus.training.trust import with_calibration, with_gate
from refocus.training.validation import QUICK, calibrated_on_split, evenly, report_on_split, sharp_images_in
from refocus.zstack import MODALITIES, Acquisition

EXAMPLES = 3
CALIBRATION_IMAGES = 40


def evaluate_and_write(
    *,
    models: Sequence[str],
    out: Path,
    dataset: str | None,
    images: Path | None,
    stacks: Path | None,
    split: Split,
    quick: bool,
    classical: bool,
    baselines_from: Path | None,
    calibrate: Path | None,
    most: int,
    console: Console,
) -> EvaluationReport:
    """Evaluate packages (the first is judged) and write the report into `out`.

    Parameters
    ----------
    models : sequence of str
        Names of bundled models or folders of packages; none measures the baselines alone.
    out : Path
    dataset : str or None
        A dataset version; or else
    images, stacks : Path or None
        Folders of sharp images and of focal series.
    split : {'validation', 'calibration', 'train'}
    quick : bool
    classical : bool
        With unsharp mask, Wiener and Richardson-Lucy: minutes.
    baselines_from : Path or None
        An earlier ``evaluation.json`` whose classical rows are taken over instead: they do not change with the model.
    calibrate : Path or None
        First fit the judged package's intervals and gate on the calibration split of `images` or `dataset`, and save
        it with its evaluation into this folder.
    most : int
        At most this many sharp images of each modality of a folder.
    console : Console
    """
    packages = [open_package(name) for name in models]
    version = DatasetVersion.open(ObjectStore(StoreSettings.from_environment()), dataset) if dataset else None
    if calibrate is not None:
        if not packages:
            raise InputError("no model was named; there is nothing to calibrate (--model).")
        console.print(f"  calibrating {packages[0].config.name} on the calibration split")
        packages[0] = _trusted(packages[0], version, images)
    baselines = BASELINES if classical else ()
    settings = QUICK if quick else SceneSettings()
    progress = _progress(console)
    sharp: list[SharpImage] = []
    if version is not None:
        if not packages:
            raise InputError("no model was named; a dataset is evaluated for one (--model).")
        judged, *others = packages
        rows = {p.config.name if p.config.name != judged.config.name else p.digest[:12]: p for p in others}
        report = report_on_split(
            judged, version, split=split, quick=quick, others=rows, baselines=baselines, progress=progress
        )
    else:
        sharp, planes = _from_folders(packages, images, stacks, split, most)
        report = evaluate(
            {p.config.name: network_method(p, check=i == 0) for i, p in enumerate(packages)},
            sharp,
            settings,
            planes=planes,
            digest=packages[0].digest if packages else None,
            baselines=baselines,
            source=f"{len(sharp)} sharp images of the {split} split, {len(planes)} planes of measured focal series",
            seam=check_seams(packages[0]) if packages and not quick else None,
            progress=progress,
        )
    if baselines_from is not None:
        earlier = EvaluationReport.model_validate_json(baselines_from.read_bytes())
        report = report.with_rows_of(earlier)
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(report.model_dump_json())
    if calibrate is not None:
        replace(packages[0], evaluation=report.model_dump(mode="json")).save(calibrate)
    methods = {p.config.name: network_method(p, check=False) for p in packages}
    shown = [] if quick else evenly(sharp, EXAMPLES)
    (out / "evaluation.html").write_text(html_report(report, examples_of(methods, shown, settings)))
    for modality in report.modalities:
        for metric in ("psnr_db", "ssim"):
            console.print(f"\n{modality}\n" + markdown_table(report, metric, modality), markup=False)
    if planes_measured := [m for m in report.measurements if m.kind == "focal_series"]:
        console.print(f"\nMeasured focal series, {len(planes_measured)} measurements, means over planes")
        console.print(series_table(report, "psnr_db") + "\n\n" + series_table(report, "ssim"), markup=False)
    console.print(f"\nWritten: {out / 'evaluation.html'} and {out / 'evaluation.json'}")
    return report


def open_package(name: str) -> ModelPackage:
    """Open a bundled model by name or a package by folder.

    Raises
    ------
    ModelMissing
        If there is neither.
    """
    return ModelPackage.bundled(name) if name in bundled_names() else ModelPackage.load(Path(name))


def _trusted(package: ModelPackage, version: DatasetVersion | None, images: Path | None) -> ModelPackage:
    """Fit intervals; the gate is the shipped one where the package has none."""
    if version is not None:
        return calibrated_on_split(package, version)
    if images is None:
        raise InputError("no images were named to calibrate on; give --images or --dataset.")
    sharp = [i for i in sharp_images_in(images, "calibration") if min(i.pixels.shape[1:]) >= SMALLEST_FIELD_PX]
    own = [i for i in sharp if i.modality == package.config.modality]
    fitted = with_calibration(package, evenly(own, CALIBRATION_IMAGES))
    return fitted if package.config.gate is not None else with_gate(fitted)


def _from_folders(
    packages: Sequence[ModelPackage], images: Path | None, stacks: Path | None, split: Split, most: int
) -> tuple[list[SharpImage], list[MeasuredPlane]]:
    modalities = {p.config.modality for p in packages}
    sharp = sharp_images_in(images, split) if images is not None else []
    sharp = [i for i in sharp if (not modalities or i.modality in modalities) and min(i.pixels.shape[1:]) >= 96]
    planes: list[MeasuredPlane] = []
    for path in sorted(stacks.rglob("*.tif*")) if stacks is not None else []:
        with open_image(path, axes="ZYX") as source:
            stack = source.stack(specimen=path.name)
        # Phase contrast has no model of its own; its series are shown beside the fluorescence ones.
        named: Acquisition = stack.acquisition
        found = thinned(planes_of(stack), 16)
        planes += [p for p in found if named.modality is None or not modalities or named.modality in modalities]
    # Modality by modality, so that one model and all of them meet the same images.
    kept = [image for name in MODALITIES for image in evenly([i for i in sharp if i.modality == name], most)]
    return kept, planes


def _progress(console: Console) -> Progress:
    began, last = time.monotonic(), [0.0]

    def tell(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] > 5 or done == total:
            last[0] = now
            console.print(f"  {now - began:5.0f} s  {what}: {done} of {total}")

    return tell
