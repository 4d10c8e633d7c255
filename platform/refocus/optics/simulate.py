"""Focal series of procedural specimens, with the truth that no microscope tells."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refocus.errors import ConfigurationError
from refocus.optics.brightfield import stained_volume
from refocus.optics.camera import Camera
from refocus.optics.formation import margin_px, volume
from refocus.optics.settings import STANDARD_SYSTEM, OpticalSystem
from refocus.optics.specimens import SPECIMENS, Specimen, grow
from refocus.zstack import Acquisition, ZStack

#: Colour cameras in slide scanners give 8 bits without a pedestal.
COLOUR_CAMERA = Camera(
    gain_adu_per_electron=0.02, offset_adu=0.0, read_noise_electrons=6.0, full_well_electrons=14000.0, bit_depth=8
)


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known about a simulated focal series.

    Attributes
    ----------
    in_focus : ndarray, shape [Y, X] or [Y, X, S]
        Grey levels expected at the specimen's own height: no noise, no rounding, float32.
    focus_plane : float
        Where that height lies among the planes, counted from 0, usually between two of them.
    defocus_um : ndarray, shape [Z]
        Signed distance of each plane from that height.
    height_um : ndarray, shape [Y, X]
        How far above its height at the centre the specimen lies, where it is tilted: a place is sharpest at plane
        ``focus_plane + height_um / z_step_um``.
    specimen : str
        Its kind.
    seed : int
    """

    in_focus: npt.NDArray[np.float32]
    focus_plane: float
    defocus_um: npt.NDArray[np.float64]
    height_um: npt.NDArray[np.float32]
    specimen: str
    seed: int


def simulate_focal_series(
    specimen: str | Specimen = "nuclei",
    *,
    planes: int = 41,
    z_step_um: float = 0.5,
    system: OpticalSystem = STANDARD_SYSTEM,
    camera: Camera | None = None,
    size_px: tuple[int, int] = (512, 512),
    photons_at_peak: float | None = None,
    background_photons: float = 30.0,
    focus_plane: float | None = None,
    tilt_deg: float = 0.0,
    tilt_azimuth_deg: float = 0.0,
    thin: bool = False,
    condenser_na: float | None = None,
    slice_um: float = 0.5,
    seed: int = 0,
) -> tuple[ZStack, Truth]:
    """Focus through a specimen and record every plane.

    Parameters
    ----------
    specimen : str or Specimen
        A kind of `SPECIMENS`, grown larger than the field so that light comes in over the rim, or a specimen.
    planes : int
    z_step_um : float
    system : OpticalSystem
        In brightfield its wavelength gives way to red, green and blue.
    camera : Camera, optional
        A 16-bit camera in fluorescence, an 8-bit colour camera in brightfield, where not given.
    size_px : (int, int)
        Height and width; a given specimen has its own.
    photons_at_peak : float, optional
        At the brightest column in focus, in fluorescence 2000; in brightfield what the lamp sends to a pixel, 85% of
        what saturates the camera.
    background_photons : float
        Light that has no place in the specimen. Fluorescence only.
    focus_plane : float, optional
        Where the specimen lies among the planes; the middle where not given.
    tilt_deg, tilt_azimuth_deg : float
        See :meth:`refocus.optics.specimens.Specimen.tilted`.
    thin : bool
        Collapse the specimen to a sheet: truth is then exact in every pixel.
    condenser_na : float, optional
        Brightfield: 0.7 of the objective's aperture where not given.
    slice_um : float
        Spacing of the specimen's slices.
    seed : int
        Of specimen and noise. Equal seeds give equal series.

    Returns
    -------
    stack : ZStack
        ``"ZYX"`` uint16 in fluorescence, ``"ZYXS"`` in brightfield (uint8 up to 8 bits), intensity linear in light.
    truth : Truth

    Raises
    ------
    ConfigurationError
        If the specimen is not known, or sizes do not make sense.
    """
    if planes < 1 or min(size_px) < 8 or not all(0 < length < math.inf for length in (z_step_um, slice_um)):
        raise ConfigurationError(
            f"{planes} planes every {z_step_um} um of {size_px[0]} x {size_px[1]} px in slices of {slice_um} um cannot "
            "be simulated; expected at least 1 plane, positive distances, 8 px or more a side."
        )
    if not (abs(tilt_deg) < 90 and math.isfinite(tilt_azimuth_deg)):
        raise ConfigurationError(
            f"a tilt of {tilt_deg} degrees towards {tilt_azimuth_deg} came; expected less than 90, such as 2."
        )
    middle = (planes - 1) / 2 if focus_plane is None else focus_plane
    defocus_um = (np.arange(planes, dtype=np.float64) - middle) * np.float64(z_step_um)
    kind, body, margin = _body(specimen, system, size_px, float(np.abs(defocus_um).max()), slice_um, seed)
    height_px, width_px = (n - 2 * margin for n in body.light.shape[-2:])
    if thin:
        body = replace(body, light=body.light.sum(0, keepdim=True), focus_um=0.0)
    rise = body.tilted(tilt_deg, tilt_azimuth_deg) if tilt_deg else body
    # One more plane, at the specimen's own height, is the truth.
    focus_um = torch.cat([torch.from_numpy(defocus_um).float(), torch.zeros(1)]) + rise.focus_um
    chosen = camera if camera is not None else (COLOUR_CAMERA if body.modality == "brightfield" else Camera())
    if body.modality == "brightfield":
        lamp = photons_at_peak if photons_at_peak is not None else _lamp_photons(chosen)
        aperture = condenser_na if condenser_na is not None else 0.7 * system.numerical_aperture
        photons = lamp * stained_volume(
            rise.light, rise.stains, system, focus_um, slice_um=rise.slice_um, condenser_na=aperture
        )
        photons = photons.movedim(1, -1)
    else:
        peak = photons_at_peak if photons_at_peak is not None else 2000.0
        emission = volume(rise.light, system, focus_um, slice_um=rise.slice_um)
        photons = peak * emission.clamp_min(0.0) + background_photons
    photons = photons[:, margin : margin + height_px, margin : margin + width_px]
    recorded = chosen.record(photons[:-1], torch.Generator().manual_seed(seed + 1))
    dtype = np.uint8 if chosen.bit_depth <= 8 else np.uint16
    stack = ZStack(
        recorded.numpy().astype(dtype),
        "ZYXS" if body.modality == "brightfield" else "ZYX",
        Acquisition(
            modality=body.modality,
            pixel_size_um=system.pixel_size_um,
            z_step_um=z_step_um,
            numerical_aperture=system.numerical_aperture,
            wavelength_um=None if body.modality == "brightfield" else system.wavelength_um,
            refractive_index=system.refractive_index,
        ),
        source=f"simulated {kind}, seed {seed}",
        metadata={"simulated": True, "specimen": kind, "seed": seed, "focus_plane": middle, "tilt_deg": tilt_deg},
    )
    truth = Truth(
        in_focus=chosen.noise_free_adu(photons[-1]).clamp(max=float(2**chosen.bit_depth - 1)).numpy(),
        focus_plane=middle,
        defocus_um=defocus_um,
        height_um=_heights(height_px, width_px, system.pixel_size_um, tilt_deg, tilt_azimuth_deg).numpy(),
        specimen=kind,
        seed=seed,
    )
    return stack, truth


def _body(
    specimen: str | Specimen,
    system: OpticalSystem,
    size_px: tuple[int, int],
    farthest_um: float,
    slice_um: float,
    seed: int,
) -> tuple[str, Specimen, int]:
    """The specimen, its kind, and how many pixels it is wider than the field on every side."""
    if isinstance(specimen, Specimen):
        return specimen.kind, specimen, 0
    if specimen not in SPECIMENS:
        raise ConfigurationError(f"specimen {specimen!r} is not known; expected one of {', '.join(SPECIMENS)}.")
    # Beyond a fifth of the field the mirrored rim is as good as more specimen, and far cheaper.
    margin = min(margin_px(system, farthest_um), max(16, min(size_px) // 5))
    height, width = size_px[0] + 2 * margin, size_px[1] + 2 * margin
    grown = grow(specimen, size_px=(height, width), pixel_size_um=system.pixel_size_um, slice_um=slice_um, seed=seed)
    return specimen, grown, margin


def _lamp_photons(camera: Camera) -> float:
    """A lamp that fills 85% of the camera's range."""
    electrons = min(camera.full_well_electrons, (2**camera.bit_depth - 1) / camera.gain_adu_per_electron)
    return 0.85 * electrons / camera.quantum_efficiency


def _heights(height_px: int, width_px: int, pixel_um: float, tilt_deg: float, azimuth_deg: float) -> Tensor:
    """Rise of a tilted specimen over its centre, in um."""
    rise = float(np.tan(np.deg2rad(tilt_deg))) * pixel_um
    down = (torch.arange(height_px) - (height_px - 1) / 2) * rise * float(np.sin(np.deg2rad(azimuth_deg)))
    across = (torch.arange(width_px) - (width_px - 1) / 2) * rise * float(np.cos(np.deg2rad(azimuth_deg)))
    return down[:, None] + across
