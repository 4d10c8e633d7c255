"""What is asked of a restorer and what it answers: plain values that travel between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from refocus.errors import ConfigurationError, MetadataMissing
from refocus.optics.ladder import OWN_SAMPLING, nearest_profile
from refocus.optics.settings import OpticalSystem
from refocus.wire.headers import OnOutOfRange
from refocus.wire.image import WireImage
from refocus.zstack import Modality


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """Planes to restore, and how.

    Parameters
    ----------
    planes : ndarray, [P, Y, X] or [P, Y, X, 3]
    model : str or None
        ``NAME``, ``NAME@champion``, ``NAME@challenger`` or ``NAME@DIGEST``.
    modality : str or None
    uncertainty : bool
        Also return the interval's half width.
    on_out_of_range : {'mark', 'keep', 'fail'}
        Where the image is beyond what the network was trained for: say so, give those tiles back as they came, or
        refuse.
    maps : bool
        Also return the tile reports of ``/v1/focus``.
    correlation_id : str
    optics : OpticalSystem or None
        Where they are known; see `optics_of`.
    """

    planes: npt.NDArray[Any]
    model: str | None = None
    modality: Modality | None = None
    uncertainty: bool = False
    on_out_of_range: OnOutOfRange = "mark"
    maps: bool = False
    correlation_id: str = ""
    optics: OpticalSystem | None = None

    @property
    def colors(self) -> int:
        """3 for RGB, else 1."""
        return 3 if self.planes.ndim == 4 else 1


def optics_of(
    image: WireImage,
    *,
    na: float | None = None,
    pixel_size_um: float | None = None,
    wavelength_um: float | None = None,
    blind: bool = False,
) -> OpticalSystem | None:
    """What is told of an image's optics: by the caller, and else by its file; None where that is too little.

    None, too, where a file's pixels cannot be the objective's own, as those of an image that was scaled since. What a
    caller says is never dropped in silence; a pixel size alone is no claim about the blur.

    Parameters
    ----------
    na, pixel_size_um, wavelength_um : float or None
        What the caller says.
    blind : bool
        Ignore what the file says.

    Raises
    ------
    MetadataMissing
        If the caller speaks of the optics and too little is known to use it.
    ConfigurationError
        If the caller's pixels and aperture cannot belong together, or are given to be ignored.
    """
    given = {"na": na, "pixel_size_um": pixel_size_um, "wavelength_um": wavelength_um}
    said = {name: value for name, value in given.items() if value is not None}
    speaks = na is not None or wavelength_um is not None
    if blind:
        if speaks:
            raise ConfigurationError(f"{_listed(said)} was given together with blind, which ignores it; drop either.")
        return None
    known = {
        "na": na or image.numerical_aperture,
        "pixel_size_um": pixel_size_um or image.pixel_size_um,
        "wavelength_um": wavelength_um or image.wavelength_um,
    }
    told = OpticalSystem.told(
        numerical_aperture=known["na"],
        pixel_size_um=known["pixel_size_um"],
        wavelength_um=known["wavelength_um"],
        refractive_index=image.refractive_index,
    )
    if told is None:
        if speaks:
            missing = " and ".join(name for name in ("na", "pixel_size_um") if known[name] is None)
            raise MetadataMissing(
                f"{_listed(said)} was given, and neither you nor the file says {missing}, without which the blur "
                "cannot be read with it. Give aperture and pixel size, or neither."
            )
        return None
    if nearest_profile(told) is None:
        if said:
            raise ConfigurationError(_unfit(told, said))
        return None
    return told


def _unfit(told: OpticalSystem, said: dict[str, float]) -> str:
    finest_um, coarsest_um = (share * told.wavelength_um / told.numerical_aperture for share in OWN_SAMPLING)
    source = {name: "" if name in said else " (from the file)" for name in ("na", "pixel_size_um")}
    return (
        f"na={told.numerical_aperture:g}{source['na']} and pixel_size_um={told.pixel_size_um:g}"
        f"{source['pixel_size_um']} do not fit together: at {told.wavelength_um:g} um, pixels of {finest_um:.2g} to "
        f"{coarsest_um:.2g} um are expected. Pixel size is meant in the specimen: the camera's over the magnification."
    )


def _listed(said: dict[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in said.items())


class TileReport(BaseModel):
    """One tile of one plane, as ``/v1/focus`` reports it.

    Parameters
    ----------
    blur_radius_px : float
        Median predicted geometric radius of the defocus.
    scan_again : bool
        Whether the tile is out of range, or has nothing to judge by.
    reasons : tuple of str
    """

    model_config = ConfigDict(frozen=True)

    plane: int
    y_px: int
    x_px: int
    height_px: int
    width_px: int
    blur_radius_px: float
    sharpness: float
    scan_again: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RestoreAnswer:
    """What came of a request.

    Parameters
    ----------
    planes : ndarray
        Like the request's.
    half_width : ndarray, float32, or None
        Of the 90% interval, in the image's units.
    calibrated : bool
        Whether that interval was calibrated on measured errors.
    out_of_range_share : float
        Of all pixels.
    blur_radius_px : ndarray, float32, [P, y, x]
    blanks : str
        What was taken for padding, overlays, hot and dead pixels, and left as it was; empty where nothing was.
    timings_ms : mapping of stage to milliseconds
    """

    planes: npt.NDArray[Any]
    model: str
    digest: str
    out_of_range_share: float
    blur_radius_px: npt.NDArray[np.float32]
    stride_px: int
    half_width: npt.NDArray[np.float32] | None = None
    calibrated: bool = False
    tiles: tuple[TileReport, ...] = ()
    blanks: str = ""
    timings_ms: dict[str, float] = field(default_factory=dict)


class ModelState(BaseModel):
    """One model as ``/v1/models`` and ``/readyz`` show it.

    Parameters
    ----------
    source : {'champion', 'bundled'}
    problem : str or None
        Why what the alias names is not what serves: the old version stays when the new one is bad.
    wanted_digest : str or None
        What the alias names.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    name: str
    digest: str
    source: Literal["champion", "bundled"]
    modality: str
    channels: int
    largest_blur_px: float
    pixel_size_um: tuple[float, float] | None = None
    numerical_aperture: tuple[float, float] | None = None
    wanted_digest: str | None = None
    problem: str | None = None


class ServiceState(BaseModel):
    """Whether images can be served, by what, and what stands in the way.

    Parameters
    ----------
    ready : bool
    reason : str
        Why not, or empty.
    """

    model_config = ConfigDict(frozen=True)

    ready: bool
    reason: str = ""
    device: str = ""
    precision: str = ""
    models: tuple[ModelState, ...] = ()
    problems: tuple[str, ...] = ()
