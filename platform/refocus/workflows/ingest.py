"""``jobs/ingest.py``: plan, ingest with progress, seal, and say what came of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from refocus.data.dataset import DatasetVersion, read_manifest, version_prefix
from refocus.data.ingest import QUARANTINE, REPORT, adopt_plan, plan_digest, plan_ingest, run_units, seal
from refocus.data.manifest import QuarantinedSource, Receipt
from refocus.data.report import warnings_of
from refocus.data.sidecar import Rule
from refocus.data.splits import SPLITS
from refocus.errors import ObjectMissing
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectStore


def ingest(*, raw: str, dataset: str, version: str | None, answers: dict[str, Any], console: Console) -> DatasetVersion:
    """Ingest `raw` into a version of `dataset`; a version named after its content may be there already."""
    fallback = Rule.answering(answers)
    store = ObjectStore(StoreSettings.from_environment())
    plan = plan_ingest(store, raw, fallback=fallback)
    if version is None:
        version = plan_digest(plan)
        try:
            manifest = read_manifest(store, version_prefix(dataset, version))
        except ObjectMissing:
            pass
        else:
            console.print(f"{dataset}/{version} is complete already: the same images, the same settings.")
            return DatasetVersion(store, manifest)
    plan = adopt_plan(store, dataset, version, plan)
    sources = sum(len(unit.sources) for unit in plan.units)
    console.print(f"Ingesting {sources} images of {store.uri(plan.raw_prefix)} as {dataset}/{version}")
    for said in plan.left_out:
        console.print(f"  {said}")

    def progress(done: int, total: int, receipt: Receipt | None) -> None:
        tiles = sum(shard.rows for shard in receipt.shards) if receipt else 0
        said = f", {tiles} tiles" if receipt else " were there already" if done else ""
        if done or receipt:
            console.print(f"  unit {done} of {total}{said}")

    prefix = version_prefix(dataset, version)
    receipts = run_units(store, prefix, plan, progress=progress)
    complete = seal(store, dataset, version, plan, receipts)
    left_out = [*plan.copies, *(item for receipt in receipts for item in receipt.quarantined)]
    _print_summary(complete, left_out, console)
    return complete


def _print_summary(dataset: DatasetVersion, quarantined: list[QuarantinedSource], console: Console) -> None:
    manifest = dataset.manifest
    table = Table("split", "specimens", "sharp images", "z-stacks", "tiles", title=dataset.uri)
    for split in SPLITS:
        sources = [source for source in manifest.sources if source.split == split]
        kinds = Counter(source.kind for source in sources)
        specimens = len({source.specimen for source in sources})
        table.add_row(split, str(specimens), str(kinds["sharp"]), str(kinds["pair"]), str(manifest.rows(split)))
    console.print(table)
    for source in manifest.sources:
        if source.in_focus_plane is not None:
            low, high = source.in_focus_range or (source.in_focus_plane, source.in_focus_plane)
            said = f", its tiles from {low:.1f} to {high:.1f}" if high - low >= 1 else ""
            said += f", tilted by {source.tilt_deg:.1f} degrees" if said and source.tilt_deg is not None else ""
            said += f", {source.tiles_at_edge} tiles quarantined at the edge" if source.tiles_at_edge else ""
            console.print(
                f"  {source.source}: in focus at plane {source.in_focus_plane:.1f} "
                f"(confidence {source.focus_confidence or 0:.2f}){said}"
            )
    console.print(f"  Quality report: {dataset.uri}/{REPORT}")
    for said in warnings_of(manifest, quarantined):
        console.print(f"  {said}")
    if quarantined:
        console.print(f"  {len(quarantined)} quarantined, listed in {dataset.uri}/{QUARANTINE}:")
        for reason, count in Counter(item.error for item in quarantined).most_common():
            example = next(item for item in quarantined if item.error == reason)
            console.print(f"    {count} x {reason}, such as {example}", markup=False)
