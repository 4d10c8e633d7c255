"""What the quickstart shows: images to start from where none are given, and before against after."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refocus.client import Client
from refocus.data.dataset import DatasetVersion
from refocus.data.tiles import Tile
from refocus.io.store import ObjectStore
from refocus.model.metrics import psnr, ssim
from refocus.training.scenes import SceneSettings, SharpImage, scenes_of

Image = npt.NDArray[Any]

_DEPTHS_UM = (2.0, 4.0, 8.0)
_SHARP_IMAGES = 10
_STACK_PLANES = 12
_PICTURE_DEPTH_UM = 4.0


@dataclass(frozen=True)
class Case:
    """One validation image before and after, in its own intensity units."""

    name: str
    depth: str
    before: Image
    after: Image
    truth: Image

    def scores(self) -> dict[str, float]:
        return {
            "psnr_before": psnr(self.before, self.truth), "psnr_after": psnr(self.after, self.truth),
            "ssim_before": ssim(self.before, self.truth), "ssim_after": ssim(self.after, self.truth),
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """All cases, and what they say together."""

    cases: list[Case]
    digest: str

    def summary(self) -> dict[str, Any]:
        rows = [{"name": case.name, "depth": case.depth, **case.scores()} for case in self.cases]
        means = {key: float(np.mean([row[key] for row in rows])) for key in Case.scores(self.cases[0])}
        return {"model_digest": self.digest, "images": len(rows), **means, "rows": rows}

    def table(self) -> str:
        groups: dict[str, list[dict[str, float]]] = defaultdict(list)
        for case in self.cases:
            groups[case.depth].append(case.scores())
        groups["all"] = [case.scores() for case in self.cases]
        lines = ["", f"{'defocus':>22} {'images':>7}   PSNR before -> after (dB)   SSIM before -> after"]
        for depth, scores in groups.items():
            mean = {key: np.mean([score[key] for score in scores]) for key in scores[0]}
            lines.append(
                f"{depth:>22} {len(scores):7d}   {mean['psnr_before']:11.2f} -> {mean['psnr_after']:5.2f}      "
                f"{mean['ssim_before']:11.3f} -> {mean['ssim_after']:.3f}"
            )
        return "\n".join(lines)


def compare_on_validation(client: Client, store: ObjectStore, dataset: str = "default") -> Comparison:
    """Send validation images through the service and compare with the truth; training never saw them."""
    version = DatasetVersion.open(store, dataset)
    cases = [*_simulated_cases(client, version), *_measured_cases(client, version)]
    if not cases:
        raise SystemExit(f"{version.uri} has no validation image to compare on; ingest more images")
    (served,) = [model["digest"] for model in client.models() if model["name"] == "fluorescence"]
    return Comparison(cases, served)


def _simulated_cases(client: Client, version: DatasetVersion) -> list[Case]:
    cases = []
    images = list(_validation_images(version))
    settings = SceneSettings(defocus_um=_DEPTHS_UM, photons=(2000.0,))
    for scene in scenes_of(images, settings):
        # A camera counts: what is sent has 16 bit like what a microscope would send.
        gain = 50000.0 / float(scene.truth.max())
        before = np.clip(np.rint(scene.image[0] * gain), 0, 65535).astype(np.uint16)
        after = client.refocus(before, modality=scene.modality)
        truth = scene.truth[0] * gain
        cases.append(Case(scene.source, f"{scene.defocus_um:g} um, simulated", before, after, truth))
    return cases


def _validation_images(version: DatasetVersion) -> list[SharpImage]:
    chosen: dict[str, SharpImage] = {}
    for tile in version.tiles("validation", modalities=["fluorescence"]):
        # Empty fields say nothing about sharpness.
        structure = float(np.std((tile.pixels.astype(np.float32) - tile.offset) / tile.scale))
        if tile.kind == "sharp" and min(tile.pixels.shape[1:]) >= 200 and structure > 0.1:
            chosen.setdefault(tile.specimen, SharpImage(tile.pixels[:1], tile.specimen, "fluorescence", tile.source))
    # The order of hashes is the order of no microscope: a fair mix.
    return list(chosen.values())[:: max(1, len(chosen) // _SHARP_IMAGES)][:_SHARP_IMAGES]


def _measured_cases(client: Client, version: DatasetVersion) -> list[Case]:
    pairs: list[Tile] = [t for t in version.tiles("validation") if t.kind == "pair" and t.planes_from_focus is not None]
    blurred = [tile for tile in pairs if abs(tile.planes_from_focus or 0) >= 3 and tile.target is not None]
    cases = []
    for tile in blurred[:: max(1, len(blurred) // _STACK_PLANES)][:_STACK_PLANES]:
        assert tile.target is not None
        after = client.refocus(np.ascontiguousarray(tile.pixels[0]))
        cases.append(Case(tile.source, "planes of z-stacks", tile.pixels[0], after, tile.target[0]))
    return cases


def write_picture(comparison: Comparison, path: Path) -> None:
    """Write before, after and truth side by side, with one grey scale a row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wanted = [case for case in comparison.cases if case.depth.startswith(f"{_PICTURE_DEPTH_UM:g} um")]
    gains = [case.scores()["psnr_after"] - case.scores()["psnr_before"] for case in wanted]
    # The two about the median, not the best: what a user should expect.
    rows = [wanted[i] for i in np.argsort(gains)[(len(gains) - 1) // 2 :][:2]] or comparison.cases[:1]
    figure, axes = plt.subplots(len(rows), 3, figsize=(9, 3.2 * len(rows)), squeeze=False, layout="constrained")
    for line, case in zip(axes, rows, strict=True):
        low, high = np.percentile(case.truth, [0.5, 99.8])
        score = case.scores()
        titles = (
            f"one image, {case.depth}\n{score['psnr_before']:.1f} dB, SSIM {score['ssim_before']:.2f}",
            f"refocused\n{score['psnr_after']:.1f} dB, SSIM {score['ssim_after']:.2f}",
            "in focus (truth)\n",
        )
        for axis, image, title in zip(line, (case.before, case.after, case.truth), titles, strict=True):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
            axis.set_title(title, fontsize=9)
            axis.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def built_in_images(folder: Path) -> Path:
    """Write the real images that scikit-image ships, and simulated specimens, as a folder to ingest."""
    import skimage.data
    import tifffile

    from refocus.io.writers import write_ome_tiff
    from refocus.optics.simulate import simulate_focal_series

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "real").mkdir(exist_ok=True)
    tifffile.imwrite(folder / "real" / "cell.tif", skimage.data.cell())
    tifffile.imwrite(folder / "real" / "immunohistochemistry.tif", skimage.data.immunohistochemistry())
    for seed in range(24):
        target = folder / "simulated" / f"specimen{seed:02d}.ome.tif"
        if target.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        kind = ("nuclei", "filaments", "puncta", "membranes")[seed % 4]
        stack, _truth = simulate_focal_series(kind, planes=11, z_step_um=1.0, seed=seed, size_px=(320, 320))
        write_ome_tiff(target, stack.pixels, stack.axes, stack.acquisition)
    (folder / "acquisition.yaml").write_text(
        "rules:\n"
        "  - {match: 'real/immunohistochemistry*', modality: brightfield}\n"
        "  - {match: '*', modality: fluorescence}\n"
    )
    return folder
