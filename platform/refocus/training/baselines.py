"""Classical methods as rows of an evaluation, each at its best setting for every depth and exposure.

The best setting is found on the very scenes that are scored, once for PSNR and once for SSIM, with the truth in
view: an advantage that no network has, and on purpose. What beats these rows beats the method, not a careless choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refocus.model.classical import (
    RICHARDSON_LUCY_GRID,
    UNSHARP_GRID,
    WIENER_GRID,
    WienerFilter,
    richardson_lucy,
    unsharp_mask,
)
from refocus.model.metrics import data_range, psnr, ssim
from refocus.training.scenes import Scene

Image = npt.NDArray[Any]
Criterion = Literal["psnr", "ssim"]
Condition = tuple[str, float, float]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A classical method and the settings it may take.

    Parameters
    ----------
    name : str
    grid : tuple
        Settings to choose from.
    restore : callable
        ``restore(scene, settings)`` yields the restored image for each setting.
    """

    name: str
    grid: tuple[Any, ...]
    restore: Callable[[Scene, Sequence[Any]], Iterator[tuple[Any, Image]]]


def _unsharp(scene: Scene, settings: Sequence[Any]) -> Iterator[tuple[Any, Image]]:
    for setting in settings:
        yield setting, unsharp_mask(scene.image, setting)


def _wiener(scene: Scene, settings: Sequence[Any]) -> Iterator[tuple[Any, Image]]:
    shared = WienerFilter(scene.image, scene.psf)
    for setting in settings:
        yield setting, shared(setting)


def _richardson_lucy(scene: Scene, settings: Sequence[Any]) -> Iterator[tuple[Any, Image]]:
    yield from richardson_lucy(scene.image, scene.psf, settings).items()


UNSHARP = Baseline("unsharp", UNSHARP_GRID, _unsharp)
WIENER = Baseline("wiener", WIENER_GRID, _wiener)
RICHARDSON_LUCY = Baseline("rl", RICHARDSON_LUCY_GRID, _richardson_lucy)
BASELINES = (UNSHARP, WIENER, RICHARDSON_LUCY)


@dataclass(frozen=True, slots=True)
class BestSettings:
    """The setting of each baseline by condition and criterion."""

    chosen: Mapping[tuple[str, Criterion, Condition], Any]

    def rows(self, baseline: Baseline, scene: Scene) -> Iterator[tuple[str, Image]]:
        """Yield the baseline's rows for a scene: ``NAME`` at its best PSNR, ``NAME_ssim`` at its best SSIM."""
        wanted = {c: self.chosen[baseline.name, c, scene.condition] for c in ("psnr", "ssim")}
        restored = dict(baseline.restore(scene, list(dict.fromkeys(wanted.values()))))
        yield baseline.name, restored[wanted["psnr"]]
        yield f"{baseline.name}_ssim", restored[wanted["ssim"]]

    def described(self) -> dict[str, str]:
        """Return the settings in words, by ``method | criterion | modality | depth | photons``."""
        return {
            f"{name} | {criterion} | {modality} | {defocus_um:g} um | {photons:g}": str(setting)
            for (name, criterion, (modality, defocus_um, photons)), setting in self.chosen.items()
        }


def best_settings(scenes: Iterable[Scene], baselines: Sequence[Baseline] = BASELINES) -> BestSettings:
    """Find each baseline's best setting for every modality, depth and exposure, averaged over scenes."""
    totals: dict[tuple[str, Criterion, Condition], dict[Any, list[float]]] = {}
    for scene in scenes:
        span = data_range(scene.truth)
        for baseline in baselines:
            for setting, image in baseline.restore(scene, baseline.grid):
                for criterion, value in (
                    ("psnr", psnr(image, scene.truth, range_of_data=span)),
                    ("ssim", ssim(image, scene.truth, range_of_data=span)),
                ):
                    of_condition = totals.setdefault((baseline.name, criterion, scene.condition), {})  # type: ignore[arg-type]
                    of_condition.setdefault(setting, []).append(value)
    return BestSettings({key: max(by, key=lambda s: float(np.mean(by[s]))) for key, by in totals.items()})
