"""Fit what makes a package trustworthy on specimens that training has not seen: restraint, intervals, gate."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from refocus.model.abstain import RangeGate, fit_gate, flagged_share
from refocus.model.calibration import CalibrationSample, enlarged, fit_calibration
from refocus.model.checkpoint import ModelPackage
from refocus.model.contrast import features_of
from refocus.model.restore import LoadedModel, Restoration
from refocus.model.restraint import ChangeSample, Restraint, fit_restraint
from refocus.optics.settings import STANDARD_SYSTEM, OpticalSystem
from refocus.training.grain import USUAL_STRENGTH, with_grain
from refocus.training.scenes import Scene, SceneSettings, SharpImage, scenes_of

Image = npt.NDArray[Any]

#: Fractions of the largest blur at which intervals are calibrated: the whole range, evenly.
CALIBRATION_STEPS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: At the sharp image's peak, where intervals are calibrated.
CALIBRATION_PHOTONS = (1000.0, 2000.0)
_LOW_SYSTEM = OpticalSystem(numerical_aperture=0.45, wavelength_um=0.6, pixel_size_um=0.5)
_STEEP_SYSTEM = OpticalSystem(numerical_aperture=0.9, wavelength_um=0.525, pixel_size_um=0.16)
#: Objectives through which restraint is fitted: through the first alone it held back what others need. Intervals are
#: calibrated through the first.
RESTRAINT_SYSTEMS = (STANDARD_SYSTEM, _LOW_SYSTEM, _STEEP_SYSTEM)
#: Restraint is fitted on specimens as they are and, up to this fraction of the largest blur, with grain: many published
#: images are smoother than what microscopes write, and changes that suit them take the others' texture for noise.
GRAIN_STEPS = (0.0, 0.05, 0.1, 0.2, 0.3)
IN_RANGE_STEPS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
BEYOND_STEPS = (1.5, 1.6, 1.75, 2.0)
#: Share of tiles in range that the threshold lets be flagged: one point below what is asked, for the other rules.
FALSE_ALARMS = 0.04
#: Objectives on which the gate is fitted; equal blur in pixels looks a little different through each. With the next two
#: in the fit, too, the first flags 6% in range and 92% beyond in place of 2.5% and 99%.
GATE_SYSTEMS = (STANDARD_SYSTEM, _LOW_SYSTEM)
#: Objectives on which it is measured as well: coarser and finer sampling than any in the fit.
OTHER_SYSTEMS = (
    OpticalSystem(numerical_aperture=0.95, wavelength_um=0.5, pixel_size_um=0.16),
    OpticalSystem(numerical_aperture=0.3, wavelength_um=0.55, pixel_size_um=0.65),
)


def with_calibration(
    package: ModelPackage,
    images: Sequence[SharpImage],
    *,
    pixels_per_scene: int = 800,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ModelPackage:
    """Return the package restrained to what `images` bear out, with intervals calibrated on them.

    Its digest changes with both.

    Parameters
    ----------
    package : ModelPackage
    images : sequence of SharpImage
        Of the calibration split.
    pixels_per_scene : int
        Drawn at random from each scene for the intervals.
    device : torch.device or str, optional
    seed : int
    progress : callable, optional
    """
    largest = package.config.largest_blur_px
    grainy = [_grainy(image, seed) for image in images]
    several = [
        (specimens, _at_steps(system, largest, steps, (1400.0,), seed))
        for system in RESTRAINT_SYSTEMS
        for specimens, steps in ((images, CALIBRATION_STEPS), (grainy, GRAIN_STEPS))
    ]
    scenes = sum(len(specimens) * len(settings.defocus_um) for specimens, settings in several)
    total = scenes + len(images) * len(CALIBRATION_STEPS) * len(CALIBRATION_PHOTONS)
    counted = count(1)

    def tell() -> None:
        if progress is not None:
            progress(next(counted), total)

    free = _configured(package, restraint=Restraint())
    changes = (
        _change(scene, found)
        for specimens, settings in several
        for scene, found in _seen(free, specimens, settings, device, tell)
    )
    restrained = _configured(package, restraint=fit_restraint(changes))
    drawn = calibration_samples(
        restrained, images, pixels_per_scene=pixels_per_scene, device=device, seed=seed, tell=tell
    )
    return _configured(restrained, calibration=fit_calibration(drawn))


def calibration_samples(
    package: ModelPackage,
    images: Sequence[SharpImage],
    *,
    steps: Sequence[float] = CALIBRATION_STEPS,
    photons: tuple[float, ...] = CALIBRATION_PHOTONS,
    pixels_per_scene: int = 800,
    device: torch.device | str | None = None,
    seed: int = 0,
    tell: Callable[[], None] | None = None,
) -> Iterator[CalibrationSample]:
    """Yield pixels of each image at each depth and exposure: errors, scales and predicted blurs, which intervals need.

    Parameters
    ----------
    package : ModelPackage
    images : sequence of SharpImage
        That training has not seen.
    steps : sequence of float
        Fractions of the package's largest blur.
    photons : tuple of float
        At the sharp image's peak.
    pixels_per_scene : int
        Drawn at random.
    device : torch.device or str, optional
    seed : int
    tell : callable, optional
        Called after each scene.
    """
    settings = _at_steps(STANDARD_SYSTEM, package.config.largest_blur_px, steps, photons, seed)
    rng = np.random.default_rng(seed)
    for scene, found in _seen(package, images, settings, device, tell):
        yield _drawn(scene, found, rng, pixels_per_scene)


def _seen(
    package: ModelPackage,
    images: Sequence[SharpImage],
    settings: SceneSettings,
    device: torch.device | str | None,
    tell: Callable[[], None] | None,
) -> Iterator[tuple[Scene, Restoration]]:
    model = LoadedModel(package, device=device)
    for scene in scenes_of(images, settings):
        given = np.ascontiguousarray(_like_restored(scene.image))
        yield scene, model.restore(given, axes="YXS" if len(scene.image) == 3 else "CYX", with_scale=True)
        if tell is not None:
            tell()


def _configured(package: ModelPackage, **fields: Any) -> ModelPackage:
    return replace(package, config=package.config.model_copy(update=fields))


def _grainy(image: SharpImage, seed: int) -> SharpImage:
    """The same specimen with grain; its source says so, and so its noise is another."""
    name = hashlib.sha256(f"{image.specimen}|{image.source}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(name[:7], "big") ^ seed)
    pixels = torch.from_numpy(np.ascontiguousarray(image.pixels, np.float32))
    absorbing = image.modality == "brightfield"
    lamp = float(pixels.max()) if absorbing else 1.0
    grained = with_grain(pixels / lamp, USUAL_STRENGTH, generator, absorbing=absorbing) * lamp
    return replace(image, pixels=grained.numpy(), source=f"{image.source} with grain")


def _like_restored(channels: Image) -> Image:
    """[C, Y, X] as images are restored: colours last."""
    return np.moveaxis(channels, 0, -1) if len(channels) == 3 else channels


def _change(scene: Scene, found: Restoration) -> ChangeSample:
    given, truth = _like_restored(scene.image), _like_restored(scene.truth)
    return ChangeSample(scene.specimen, given, found.pixels, truth, found.median_blur_radius_px)


def _drawn(scene: Scene, found: Restoration, rng: np.random.Generator, pixels: int) -> CalibrationSample:
    assert found.scale is not None
    maps = [enlarged(m, found.stride_px, scene.truth.shape[1:]) for m in found.blur_radius_px]
    blur = _like_restored(np.broadcast_to(np.stack(maps), scene.truth.shape))
    truth = _like_restored(scene.truth)
    drawn = rng.integers(0, truth.size, pixels)
    return CalibrationSample(
        scene.specimen,
        np.abs(found.pixels - truth).ravel()[drawn],
        found.scale.ravel()[drawn],
        blur.ravel()[drawn],
        true_blur_px=scene.blur_radius_px,
    )


def with_shipped_gate(package: ModelPackage) -> ModelPackage:
    """Return the package with the gate that ships with Refocus, where that serves its range.

    The gate sees no network, so one serves every package whose range ends within 15% of its own; it may be newer than
    the one that a package has. A gate of another range was fitted for its package alone, and stays.
    """
    gate, own = RangeGate.shipped(), package.config.gate
    if own is not None and not serves(gate, own.largest_blur_px):
        return package
    return _configured(package, gate=gate) if serves(gate, package.config.largest_blur_px) else package


def serves(gate: RangeGate, largest_blur_px: float) -> bool:
    """Whether a gate serves packages whose range ends at this blur: within 15% of its own."""
    return 0.85 * gate.largest_blur_px <= largest_blur_px <= 1.15 * gate.largest_blur_px


def gate_for(
    largest_blur_px: float,
    images: Sequence[SharpImage],
    *,
    systems: Sequence[OpticalSystem] = GATE_SYSTEMS,
    progress: Callable[[int, int], None] | None = None,
) -> RangeGate:
    """Fit a gate for a range of blur; it needs no network."""
    near: list[Image] = []
    far: list[Image] = []
    total = len(images) * len(systems) * 2 * (len(IN_RANGE_STEPS) + len(BEYOND_STEPS))
    for system in systems:
        # Photons from dim to bright: a gate fitted on one exposure takes others for another blur.
        for steps, into in ((IN_RANGE_STEPS, near), (BEYOND_STEPS, far)):
            settings = _at_steps(system, largest_blur_px, steps, (700.0, 3000.0), 0)
            for scene in scenes_of(images, settings):
                into.append(features_of(scene.image.mean(0)))
                if progress is not None:
                    progress(len(near) + len(far), total)
    return fit_gate(np.array(near), np.array(far), largest_blur_px=largest_blur_px, false_alarms=FALSE_ALARMS)


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a gate flags through one objective, on images it was not fitted on.

    Attributes
    ----------
    system : OpticalSystem
    flagged : dict of float to float
        Share of tiles flagged, by blur over the end of the range.
    """

    system: OpticalSystem
    flagged: dict[float, float]

    @property
    def in_range(self) -> float:
        """Mean over the steps in range; at most 5% is asked."""
        return float(np.mean([share for step, share in self.flagged.items() if step <= 1.0]))

    @property
    def beyond(self) -> float:
        """Mean over the steps from 1.5 times the range; at least 95% is asked."""
        return float(np.mean([share for step, share in self.flagged.items() if step >= 1.5]))

    @property
    def as_asked(self) -> bool:
        """Whether both hold."""
        return self.in_range <= 0.05 and self.beyond >= 0.95


def operating_point(
    gate: RangeGate, images: Iterable[SharpImage], *, system: OpticalSystem = STANDARD_SYSTEM
) -> OperatingPoint:
    """Measure a gate by blur over its range, on images it was not fitted on."""
    settings = _at_steps(system, gate.largest_blur_px, (*IN_RANGE_STEPS, *BEYOND_STEPS), (1000.0, 2000.0), 0)
    found: dict[float, list[float]] = {}
    for scene in scenes_of(images, settings):
        step = round(scene.blur_radius_px / gate.largest_blur_px, 2)
        absorbing = scene.modality == "brightfield"
        found.setdefault(step, []).append(flagged_share(gate.judge(scene.image, absorbing=absorbing)))
    return OperatingPoint(system, {step: float(np.mean(shares)) for step, shares in sorted(found.items())})


def _at_steps(
    system: OpticalSystem, largest_blur_px: float, steps: Sequence[float], photons: tuple[float, ...], seed: int
) -> SceneSettings:
    depths = tuple(system.defocus_um_for(step * largest_blur_px) for step in steps)
    return SceneSettings(system=system, defocus_um=depths, photons=photons, seed=seed)
