"""The quality report of an ingest: what a person looks at before training on it."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from refocus.data.manifest import DatasetManifest, QuarantinedSource, SourceSummary
from refocus.data.splits import SPLITS
from refocus.data.tiles import Tile
from refocus.errors import counted
from refocus.focus.plot import lettered
from refocus.io.store import ObjectStore

_EXAMPLES = 6
_CURVES = 12
_REASONS = 100
_FOLDERS = 3
# _z03, -Z3, z_03 and the like, in a file's name or its folder's.
_PLANE = re.compile(r"(?<![a-z\d])z[_-]?\d+(?![a-z\d])", re.IGNORECASE)
_NEEDED_FOR = {
    "train": "there is nothing to train on",
    "validation": "no training starts without it",
    "calibration": "intervals cannot be fitted without it",
}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; border-bottom: 1px solid #ddd }
td { text-align: right } td:first-child, th { text-align: left } img { max-width: 100% } .warn { color: #a40 }
"""


def quality_report(
    store: ObjectStore,
    manifest: DatasetManifest,
    quarantined: Sequence[QuarantinedSource],
    left_out: Sequence[str] = (),
) -> str:
    """Return one self-contained HTML page: counts, focus curves, example tiles, what was left out and why.

    `left_out` is what the plan says of that; what is `quarantined` is listed by itself.
    """
    stacks = [source for source in manifest.sources if source.focus_curve][:_CURVES]
    examples = _spread(store, manifest)
    parts = [
        f"<h1>{escape(manifest.name)}/{escape(manifest.version)}</h1>",
        f"<p>From {escape(manifest.raw_prefix)}, {manifest.created:%Y-%m-%d %H:%M} UTC. "
        f"{len(manifest.sources)} images used, {len(quarantined)} quarantined.</p>",
        _counts(manifest),
        _paragraphs([*left_out, *warnings_of(manifest, quarantined)]),
        _figure("In-focus planes", _curves(stacks), [stack.source for stack in stacks]) if stacks else "",
        _figure(
            "Examples: what the network sees, and its target", _examples(examples), [tile.source for tile in examples]
        ),
        _quarantine(quarantined),
    ]
    return f"<!doctype html><meta charset='utf-8'><title>Quality</title><style>{_STYLE}</style>" + "\n".join(parts)


def said_of_loose_planes(manifest: DatasetManifest) -> str | None:
    """Return a warning where images without a z axis are named like planes of one focal series."""
    series: dict[str, list[str]] = {}
    for source in manifest.sources:
        if source.kind == "sharp" and _PLANE.search(source.source):
            series.setdefault(_PLANE.sub("", source.source), []).append(source.source)
    planes = [name for names in series.values() if len(names) > 1 for name in names]
    if not planes:
        return None
    return (
        f"{len(planes)} images are named like planes of focal series, such as {planes[0]} and {planes[1]}: each counts "
        "as sharp, as a specimen of its own, and those out of focus teach networks to leave blur in. Save each series "
        "as one TIFF with a Z axis, or keep its in-focus plane alone."
    )


def said_of_scattered(manifest: DatasetManifest) -> str | None:
    """Return a warning where specimens come from several folders; None where each has one of its own."""
    scattered = manifest.scattered_specimens
    if not scattered:
        return None
    specimen, folders = next(iter(scattered.items()))
    more = f" and {len(folders) - _FOLDERS} more" if len(folders) > _FOLDERS else ""
    return (
        f"Files of one name count as one specimen, in one split: {len(scattered)} specimens come from several folders, "
        f"such as {specimen} from {', '.join(folders[:_FOLDERS])}{more}. That is right where folders hold channels or "
        "times; where each shows another specimen, give the rule specimen: '.*/(.+)/.+' in an acquisition.yaml."
    )


def said_of_blanks(manifest: DatasetManifest) -> str | None:
    """Return a warning where images hold padding, overlays or defective pixels, and what was done about it."""
    blank = [source for source in manifest.sources if source.blanks]
    if not blank:
        return None
    cut, tiles = sum(source.inside_px is not None for source in blank), sum(source.blank_tiles for source in blank)
    return (
        f"{counted(len(blank), 'image')} hold padding, overlays or defective pixels, such as {blank[0].source} "
        f"({blank[0].blanks}), whose edges no optics blurs: blank rims are cut off ({counted(cut, 'image')}), the "
        f"specimen is continued over the rest, and tiles more than {manifest.settings.maximum_blank_share:.0%} of "
        f"which are such are left out ({tiles}). Images as the camera gave them are better."
    )


def _counts(manifest: DatasetManifest) -> str:
    rows = []
    for split in SPLITS:
        sources = [source for source in manifest.sources if source.split == split]
        kinds = Counter(source.kind for source in sources)
        modalities = ", ".join(f"{n} {name}" for name, n in sorted(Counter(s.modality for s in sources).items()))
        dropped = sum(source.background_tiles_dropped for source in sources)
        cells = (
            split, len({s.specimen for s in sources}), kinds["sharp"], kinds["pair"], manifest.rows(split), dropped,
            modalities,
        )  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    head = ("split", "specimens", "sharp images", "z-stacks", "tiles", "background tiles left out", "modalities")
    return "<table><tr>" + "".join(f"<th>{each}</th>" for each in head) + "</tr>" + "".join(rows) + "</table>"


def warnings_of(manifest: DatasetManifest, quarantined: Sequence[QuarantinedSource]) -> list[str]:
    """Return what a person should know before training on a version, one sentence or two for each thing."""
    said = []
    for modality in sorted({source.modality for source in manifest.sources}):
        if empty := [split for split in SPLITS if not manifest.rows(split, [modality])]:
            said.append(
                f"No {modality} tile is in {' or '.join(empty)}: {'; '.join(_NEEDED_FOR[split] for split in empty)}. "
                "Specimens are dealt out by their names, a tenth each to validation and calibration: ingest more."
            )
    assumed = sum(source.modality_assumed for source in manifest.sources)
    if assumed:
        said.append(
            f"The modality of {assumed} images was assumed (colour on bright ground: brightfield; grey, and colour on "
            "dark ground: fluorescence); an acquisition.yaml beside them would say."
        )
    said += filter(None, [said_of_scattered(manifest), said_of_loose_planes(manifest)])
    saturated = [source for source in manifest.sources if source.saturated_share > 0.01]
    if saturated:
        said.append(f"{len(saturated)} images have more than 1% saturated pixels, such as {saturated[0].source}.")
    said += filter(None, [said_of_blanks(manifest)])
    unsure = [s for s in manifest.sources if s.focus_confidence is not None and s.focus_confidence < 0.3]
    if unsure:
        said.append(f"The focus of {len(unsure)} series is uncertain, such as {unsure[0].source}.")
    tilted = [s for s in manifest.sources if s.in_focus_range and s.in_focus_range[1] - s.in_focus_range[0] >= 1]
    if tilted:
        said.append(
            f"{len(tilted)} series are in focus at different planes from place to place, such as {tilted[0].source}; "
            "each tile is paired with its own."
        )
    at_edge = sum(source.tiles_at_edge for source in manifest.sources)
    if at_edge:
        said.append(f"{at_edge} tiles are sharpest at the first or last plane and are left out: more range is needed.")
    used = {source.source for source in manifest.sources}
    if len({item.source.partition("#z=")[0] for item in quarantined} - used) > len(used):
        said.append("More images were quarantined than used: is this the right folder?")
    return said


def _paragraphs(warnings: Sequence[str]) -> str:
    return "".join(f"<p class='warn'>{escape(text)}</p>" for text in warnings)


def _curves(stacks: Sequence[SourceSummary]) -> bytes:
    plt = _pyplot()
    columns = min(3, len(stacks))
    rows = -(-len(stacks) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False, layout="constrained")
    for axis, source in zip(axes.flat, stacks, strict=False):
        curve = np.asarray(source.focus_curve)
        axis.plot(curve / curve.max(), marker=".", color="#246")
        axis.axvline(source.in_focus_plane, color="#c40", linewidth=1)
        name = source.source.rsplit("/", 1)[-1]
        axis.set_title(
            f"{lettered(name)}\nplane {source.in_focus_plane:.1f}, confidence {source.focus_confidence:.2f}", fontsize=8
        )
        axis.set(xlabel="plane", ylabel="sharpness")
    for axis in axes.flat[len(stacks) :]:
        axis.axis("off")
    return _png(plt, figure)


def _examples(tiles: Sequence[Tile]) -> bytes:
    if not tiles:
        return b""
    plt = _pyplot()
    figure, axes = plt.subplots(2, len(tiles), figsize=(2.2 * len(tiles), 4.8), squeeze=False, layout="constrained")
    for column, tile in enumerate(tiles):
        target = tile.pixels if tile.target is None else tile.target
        low, high = np.percentile(target, [0.5, 99.8])
        for axis, image in ((axes[0, column], tile.pixels), (axes[1, column], target)):
            axis.imshow(_shown(image, low, high), cmap="gray", vmin=0, vmax=1)
            axis.axis("off")
        what = "sharp" if tile.target is None else f"{tile.planes_from_focus or 0:+.0f} planes"
        axes[0, column].set_title(f"{lettered(tile.specimen[:18])}\n{tile.modality}, {what}", fontsize=7)
    return _png(plt, figure)


def _spread(store: ObjectStore, manifest: DatasetManifest) -> list[Tile]:
    """One tile from each of a few shards, the one with most structure among its first row group."""
    shards = sorted(manifest.shards, key=lambda shard: shard.key)
    chosen = shards[:: max(1, len(shards) // _EXAMPLES)][:_EXAMPLES]
    tiles = []
    for shard in chosen:
        rows = pq.ParquetFile(io.BytesIO(store.get(shard.key))).read_row_group(0).to_pylist()
        tiles.append(max(map(Tile.from_row, rows), key=lambda tile: float(tile.pixels.std()) / tile.scale))
    return tiles


def _shown(image: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.float64]:
    scaled = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    return np.moveaxis(scaled, 0, -1) if len(scaled) == 3 else scaled[0]


def _quarantine(quarantined: Sequence[QuarantinedSource]) -> str:
    if not quarantined:
        return "<h2>Quarantined</h2><p>Nothing.</p>"
    kinds = ", ".join(f"{count} x {name}" for name, count in Counter(q.error for q in quarantined).most_common())
    rows = "".join(
        f"<tr><td>{escape(item.source)}</td><td style='text-align:left'>{escape(item.reason)}</td></tr>"
        for item in quarantined[:_REASONS]
    )
    more = f"<p>and {len(quarantined) - _REASONS} more in quarantine.jsonl</p>" if len(quarantined) > _REASONS else ""
    return f"<h2>Quarantined</h2><p>{escape(kinds)}</p><table>{rows}</table>{more}"


def _figure(title: str, png: bytes, names: Sequence[str]) -> str:
    """A figure, and the names of its panels, which may have letters that it lacks."""
    if not png:
        return ""
    picture = f"<img src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
    return f"<h2>{escape(title)}</h2>{picture}<p>{escape(', '.join(names))}</p>"


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _png(plt: Any, figure: Any) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, dpi=100)
    plt.close(figure)
    return sink.getvalue()
