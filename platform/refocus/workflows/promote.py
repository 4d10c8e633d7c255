"""``jobs/promote.py``: from a run's best checkpoint to champion, if the gate agrees."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from refocus.data.dataset import DatasetVersion
from refocus.errors import DatasetIncomplete, ModelMissing
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore
from refocus.model.checkpoint import ModelPackage
from refocus.model.evaluation import EvaluationReport
from refocus.registry.catalog import Catalog
from refocus.registry.gates import GatePolicy
from refocus.registry.promotion import Promotion
from refocus.registry.promotion import promote as promote_package
from refocus.registry.records import AliasName
from refocus.training.report import markdown_table, series_table
from refocus.training.runs import best_checkpoint, fetch_checkpoint, read_run
from refocus.training.trust import with_shipped_gate
from refocus.training.validation import calibrated_on_split, report_on_split


def promote(
    *, run: str, policy: str, alias: AliasName, quick: bool, force: bool, reason: str, console: Console
) -> Promotion:
    """Evaluate a run's best checkpoint beside the champion on the held-out split, and ask the gate.

    Raises
    ------
    RunMissing, DatasetMissing
    PromotionRefused
        With every condition that failed; the version is published all the same. Coverage is among them where the
        dataset has too few specimens to calibrate on, unless the policy asks for none.
    AliasMoved
        If another promotion won the race.
    """
    store = ObjectStore(StoreSettings.from_environment())
    record = read_run(store, run)
    checkpoint = best_checkpoint(store, run)
    with tempfile.TemporaryDirectory() as folder:
        package = ModelPackage.load(fetch_checkpoint(store, checkpoint, Path(folder)))
    console.print(f"Evaluating step {checkpoint.seal.step} of run {run} ({package.digest[:12]}) on {record.dataset}")
    dataset = DatasetVersion.open(store, record.dataset)
    rules = GatePolicy.load(policy)
    if rules.asks_for_intervals:
        # Intervals are promised only where they were fitted, on specimens that neither training nor validation uses.
        try:
            package = calibrated_on_split(package, dataset)
        except DatasetIncomplete as error:
            console.print(f"Not calibrated: {error}", markup=False)
    package = with_shipped_gate(package)
    report = report_on_split(package, dataset, quick=quick)
    kinds = {measurement.kind for measurement in report.measurements}
    for metric in ("psnr_db", "ssim"):
        if "simulated" in kinds:
            console.print(markdown_table(report, metric, package.config.modality), markup=False)
        if "focal_series" in kinds:
            console.print(f"Measured focal series, {metric}:\n{series_table(report, metric)}", markup=False)
    package = replace(package, evaluation=report.model_dump(mode="json"))
    catalog = Catalog(store)
    promotion = promote_package(
        catalog,
        package,
        why=reason or f"best checkpoint of run {run}",
        policy=rules,
        champion_report=_champion_report(catalog, package, dataset, quick),
        alias=alias,
        force=force,
    )
    console.print(
        f"{promotion.version.model} {promotion.version.digest[:12]} is {alias} now, "
        f"judged against {promotion.decision.against}{' and forced' if promotion.alias.event.forced else ''}."
    )
    return promotion


def _champion_report(
    catalog: Catalog, candidate: ModelPackage, dataset: DatasetVersion, quick: bool
) -> EvaluationReport | None:
    """The champion on the very images of the candidate: what it was published with may be others."""
    model = candidate.config.name
    try:
        digest = catalog.alias(model, "champion")[0].digest
    except ModelMissing:
        return None
    return report_on_split(catalog.load(model, digest), dataset, quick=quick)
