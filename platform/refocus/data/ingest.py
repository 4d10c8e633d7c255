"""From raw images to a dataset version, on Ray Data.

The plan is fixed first, with the ETag of every source. Ray Data spreads its units over the cluster;
each unit writes its shards and then a receipt. The manifest is written last and only when every receipt
is there: until then the version does not exist, and the same command run again goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from refocus import errors
from refocus.data.dataset import MANIFEST, PLAN, DatasetVersion, read_manifest, version_prefix
from refocus.data.extract import extract_source
from refocus.data.manifest import (
    DatasetManifest,
    IngestPlan,
    IngestSettings,
    QuarantinedSource,
    Receipt,
    SourceObject,
    SourceSummary,
    WorkUnit,
)
from refocus.data.report import quality_report
from refocus.data.shards import ShardWriter
from refocus.data.sidecar import SIDECAR_NAME, Answers, Rule, Sidecar, ancestors, sidecar_text
from refocus.data.splits import is_image, said_of_others
from refocus.errors import DatasetExists, DatasetIncomplete, InputError, ObjectExists, ObjectMissing
from refocus.io.settings import StoreSettings
from refocus.io.store import ObjectInfo, ObjectStore
from refocus.io.zarr import etag_of_folder, zarr_roots
from refocus.wire.codec import IMAGE_SUFFIXES

RECEIPTS = "receipts/"
QUARANTINE = "quarantine.jsonl"
REPORT = "quality.html"

Progress = Callable[[int, int, Receipt | None], None]


def plan_ingest(
    store: ObjectStore, raw_prefix: str, *, settings: IngestSettings | None = None, fallback: Rule | None = None
) -> IngestPlan:
    """List the raw prefix and fix what will be ingested.

    Parameters
    ----------
    store : ObjectStore
    raw_prefix : str
        A folder, whose neighbours of like names stay out; or the key of one object; or nothing, for the whole bucket.
    settings : IngestSettings, optional
    fallback : Rule, optional
        Answers where no sidecar does.

    Raises
    ------
    DatasetIncomplete
        If there is nothing to ingest.
    ConfigurationError
        If a sidecar is not understood, or the prefix is in another bucket.
    """
    settings = settings or IngestSettings()
    prefix, objects = _listed(store, store.key_of(raw_prefix))
    sidecars = {
        entry.key.removesuffix(SIDECAR_NAME).rstrip("/"): sidecar_text(store.get(entry.key), store.uri(entry.key))
        for entry in objects
        if _is_sidecar(entry.key)
    }
    answers = _answers(sidecars, fallback)
    found, others = _sorted_out(objects)
    left_out = tuple(_left_out(others, found, answers))
    images, copies = _without_copies([image for image in found if not answers.rule_for(image.key).ignore])
    if not images:
        raise DatasetIncomplete(
            " ".join(
                [
                    f"{store.uri(prefix)} holds no image to ingest; expected {', '.join(IMAGE_SUFFIXES)} or OME-Zarr. "
                    "Upload images, or name another prefix.",
                    *(left_out if objects else ["There is nothing at all."]),
                ]
            )
        )
    return IngestPlan(
        raw_prefix=prefix,
        created=datetime.now(UTC),
        settings=settings,
        sidecars=sidecars,
        fallback=(fallback or Rule()).model_dump(exclude_unset=True),
        units=tuple(_units(images, settings.unit_bytes)),
        copies=tuple(copies),
        left_out=left_out,
    )


def plan_digest(plan: IngestPlan) -> str:
    """Return what the plan's content is, whenever it was made: the default name of its version."""
    content = json.dumps(plan.model_dump(mode="json", exclude={"created", "left_out"}), sort_keys=True)
    return "v-" + hashlib.sha256(content.encode()).hexdigest()[:12]


def adopt_plan(store: ObjectStore, name: str, version: str, plan: IngestPlan) -> IngestPlan:
    """Fix `plan` for the version, or return the same plan that an interrupted ingest left there.

    Raises
    ------
    DatasetExists
        If the version is complete, or another plan has begun it.
    """
    prefix = version_prefix(name, version)
    try:
        manifest = read_manifest(store, prefix)
    except ObjectMissing:
        pass
    else:
        raise DatasetExists(
            f"{store.uri(prefix)} is complete since {manifest.created:%Y-%m-%d %H:%M} and versions never change; "
            "give another --version, or none to have one named after its content."
        )
    try:
        store.create(prefix + PLAN, plan.model_dump_json(indent=1).encode())
    except ObjectExists:
        begun = IngestPlan.model_validate_json(store.get(prefix + PLAN))
        if plan_digest(begun) != plan_digest(plan):
            raise DatasetExists(
                f"{store.uri(prefix)} was begun on {begun.created:%Y-%m-%d %H:%M} from other images or settings; "
                "give another --version."
            ) from None
        return begun
    return plan


def ingest_unit(store: ObjectStore, prefix: str, plan: IngestPlan, unit: WorkUnit) -> Receipt:
    """Turn the sources of one unit into shards and a receipt.

    A source that cannot be used is quarantined with its reason; a store that does not answer ends the unit.
    """
    begun = time.monotonic()
    answers = _answers(plan.sidecars, Rule(**plan.fallback))
    summaries: list[SourceSummary] = []
    quarantined: list[QuarantinedSource] = []
    size_bytes = sum(source.size_bytes for source in unit.sources)
    with ShardWriter(store, prefix, unit.name, expected_bytes=size_bytes) as writer:
        for source in unit.sources:
            try:
                extraction = extract_source(store, source, answers, plan.settings, quarantined)
                for tile in extraction.tiles:
                    writer.add(extraction.split, tile)
                summaries.extend(extraction.summaries)
            except InputError as error:
                quarantined.append(QuarantinedSource(source=source.key, error=type(error).__name__, reason=str(error)))
        shards = writer.finish()
    receipt = Receipt(
        unit=unit.name,
        shards=shards,
        sources=tuple(summaries),
        quarantined=tuple(quarantined),
        bytes_read=size_bytes,
        seconds=time.monotonic() - begun,
    )
    store.put(f"{prefix}{RECEIPTS}{unit.name}.json", receipt.model_dump_json().encode())
    return receipt


def run_units(store: ObjectStore, prefix: str, plan: IngestPlan, *, progress: Progress | None = None) -> list[Receipt]:
    """Do all units of the plan that have no receipt yet, spread over the Ray cluster.

    Raises
    ------
    StoreError
        If a unit could not reach its images, or found them changed; units that are done stay so.
    """
    import ray.data

    done = dict(_receipts(store, prefix))
    waiting = [unit for unit in plan.units if unit.name not in done]
    if progress is not None:
        progress(len(done), len(plan.units), None)
    if not waiting:
        return [done[unit.name] for unit in plan.units]
    items = [{"unit": unit.model_dump_json()} for unit in waiting]
    shared = {
        "settings": store.settings,
        "prefix": prefix,
        "plan": plan.model_copy(update={"units": (), "copies": (), "left_out": ()}),
    }
    task: Any = _ingest_row
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map(task, fn_kwargs=shared)
    for row in rows.iter_rows():
        if row["error"]:
            raise getattr(errors, row["error"])(row["said"])
        receipt = Receipt.model_validate_json(row["receipt"])
        done[receipt.unit] = receipt
        if progress is not None:
            progress(len(done), len(plan.units), receipt)
    return [done[unit.name] for unit in plan.units]


def seal(store: ObjectStore, name: str, version: str, plan: IngestPlan, receipts: list[Receipt]) -> DatasetVersion:
    """Write the quarantine list, the quality report and then the manifest, which makes the version exist.

    Raises
    ------
    DatasetIncomplete
        If nothing usable was found; the quarantine list is there to read, and the plan is withdrawn.
    """
    prefix = version_prefix(name, version)
    quarantined = [*plan.copies, *(item for receipt in receipts for item in receipt.quarantined)]
    store.put(prefix + QUARANTINE, "".join(item.model_dump_json() + "\n" for item in quarantined).encode())
    manifest = DatasetManifest(
        name=name,
        version=version,
        raw_prefix=plan.raw_prefix,
        created=datetime.now(UTC),
        settings=plan.settings,
        shards=tuple(shard for receipt in receipts for shard in receipt.shards),
        sources=tuple(summary for receipt in receipts for summary in receipt.sources),
        quarantined=len(quarantined),
    )
    store.put(prefix + REPORT, quality_report(store, manifest, quarantined, plan.left_out).encode())
    if not manifest.shards:
        # The name is free again: whoever mends what was wrong has another plan for it.
        for key in [prefix + PLAN, *(entry.key for entry in store.list(prefix + RECEIPTS))]:
            store.delete(key)
        reasons = "\n".join(f"  {item}" for item in quarantined[:10])
        raise DatasetIncomplete(
            f"none of {len(quarantined)} sources could be used; all are in {store.uri(prefix + QUARANTINE)}:\n{reasons}"
        )
    store.create(prefix + MANIFEST, manifest.model_dump_json(indent=1).encode())
    return DatasetVersion(store, manifest)


def _ingest_row(row: dict[str, Any], *, settings: StoreSettings, prefix: str, plan: IngestPlan) -> dict[str, Any]:
    unit = WorkUnit.model_validate_json(row["unit"])
    try:
        receipt = ingest_unit(ObjectStore(settings), prefix, plan, unit).model_dump_json()
    except errors.RefocusError as error:
        # Raised here, it would arrive as a page of text, in an exception of Ray's.
        return {"receipt": "", "error": type(error).__name__, "said": str(error)}
    return {"receipt": receipt, "error": "", "said": ""}


def _answers(sidecars: dict[str, str], fallback: Rule | None) -> Answers:
    parsed = {folder: Sidecar.parse(text, source=f"{folder}/{SIDECAR_NAME}") for folder, text in sidecars.items()}
    return Answers(parsed, fallback)


def _listed(store: ObjectStore, place: str) -> tuple[str, list[ObjectInfo]]:
    folder = place and place + "/"
    # Keys are listed in order: an object whose whole key this is comes before those whose key begins with it.
    if place and (first := next(store.list(place), None)) is not None and first.key == place:
        return place, [first]
    return folder, list(store.list(folder))


def _sorted_out(objects: list[ObjectInfo]) -> tuple[list[SourceObject], list[str]]:
    """Return the images among `objects`, in the order of their keys, and the keys of what is neither image nor ours."""
    roots = dict.fromkeys(zarr_roots(entry.key for entry in objects))
    parts: dict[str, list[ObjectInfo]] = {root: [] for root in roots}
    images, others = [], []
    for entry in objects:
        root = next((folder for folder in ancestors(entry.key) if folder in roots), None)
        if root is not None:
            parts[root].append(entry)
        elif is_image(entry.key):
            images.append(SourceObject(key=entry.key, size_bytes=entry.size_bytes, etag=entry.etag))
        elif not (_is_sidecar(entry.key) or entry.key.endswith("/")):
            others.append(entry.key)
    for root, entries in parts.items():
        # A Zarr image is many objects: together they are one source, and any change of one is another source.
        size_bytes = sum(entry.size_bytes for entry in entries)
        images.append(SourceObject(key=root, size_bytes=size_bytes, etag=etag_of_folder(entries), kind="zarr"))
    return sorted(images, key=lambda image: image.key), others


def _left_out(others: list[str], images: list[SourceObject], answers: Answers) -> Iterator[str]:
    """Say what lies there and is not taken: a folder of another microscope's files must not look empty."""
    keys = [image.key for image in images]
    yield from said_of_others(others)
    if ignored := sum(answers.rule_for(key).ignore for key in keys):
        yield f"{ignored} image{'s' if ignored > 1 else ''} left out: a rule says ignore."
    yield from answers.idle_rules(keys)


def _is_sidecar(key: str) -> bool:
    return key.rsplit("/", 1)[-1] == SIDECAR_NAME


def _without_copies(images: list[SourceObject]) -> tuple[list[SourceObject], list[QuarantinedSource]]:
    # Under another name the same bytes are another specimen: they would train a network and judge it, too.
    first: dict[tuple[str, int], SourceObject] = {}
    copies = []
    for image in images:
        same = first.setdefault((image.etag, image.size_bytes), image)
        if same is not image:
            reason = f"{image.key} is byte for byte the same as {same.key}"
            copies.append(QuarantinedSource(source=image.key, error="DuplicatedSource", reason=reason))
    return list(first.values()), copies


def _units(images: list[SourceObject], unit_bytes: int) -> Iterator[WorkUnit]:
    group: list[SourceObject] = []
    for image in images:
        if group and sum(member.size_bytes for member in group) + image.size_bytes > unit_bytes:
            yield _unit(group)
            group = []
        group.append(image)
    if group:
        yield _unit(group)


def _unit(sources: list[SourceObject]) -> WorkUnit:
    content = "\n".join(f"{source.key} {source.etag}" for source in sources)
    return WorkUnit(name=hashlib.sha256(content.encode()).hexdigest()[:16], sources=tuple(sources))


def _receipts(store: ObjectStore, prefix: str) -> Iterator[tuple[str, Receipt]]:
    for entry in store.list(prefix + RECEIPTS):
        receipt = Receipt.model_validate_json(store.get(entry.key))
        yield receipt.unit, receipt
