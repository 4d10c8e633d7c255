"""What a restoration rests on at one place: what told the blur, what undoing it would give, what was made of that.

A picture that was refocused looks plausible where it is right and where it is wrong. Which of the two is easier to say
beside the evidence: whether the spectrum has the rings that the estimated blur leaves, whether one radius stands out
or several are alike, and whether what is seen in the end is in the measurement's own inverses or the network's alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from refocus.errors import ModelUnfit, UnsupportedImage
from refocus.model.blur_estimate import WINDOW_PX, BlurEstimate
from refocus.model.blur_spectrum import NoiseColour
from refocus.model.normalisation import Normalisation
from refocus.model.restore import LoadedModel, Restoration
from refocus.model.seen import SeenPlane
from refocus.model.specimen import Specimen
from refocus.optics.ladder import (
    PROFILES,
    RADII_PX,
    RUNG_RATIO,
    Profile,
    blur_ladder,
    cycles_per_px,
    nearest_profile,
    widened,
)
from refocus.optics.settings import OpticalSystem

Image = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

#: What proposals are made from lies around them: as far as the kernels of the inverse filters reach.
_SURROUNDINGS_PX = 128
#: Rings of the spectrum from frequency 0 to Nyquist.
_RINGS = 128


@dataclass(frozen=True, slots=True)
class Explanation:
    """One square of an image, and what stands behind its restoration.

    Attributes
    ----------
    rows, columns : slice
        Where the square lies in the image.
    given, restored, half_width : ndarray, float32, shape [Y, X] or [Y, X, 3]
        In the image's units; `half_width` is half of the 90% interval.
    filtered, deconvolved : ndarray, float32, likewise, or None
        By the middle one of the inverse filters, and by Richardson-Lucy's last step: without any network.
    radius_px : float
        Estimated geometric radius of the blur.
    predicted_radius_px : float
        What the network takes it for: median over the square.
    profile : Profile
        Of the objective: told, or found likeliest.
    told : bool
        Whether the optics were told.
    radii_px : ndarray, shape [radii]
    spectrum_nats, light_nats : ndarray, float32, shape [radii]
        What the square's spectrum says against each radius, and what light says for it.
    cycles_per_px, power : ndarray, float32, shape [rings]
        Mean power spectrum of the square by spatial frequency.
    zeros_cycles_per_px : ndarray
        Where a blur of `radius_px` leaves nothing.
    noise : NoiseColour or None
        How the image's noise falls with frequency, as that of processed images does; None where it is white.
    digest : str
        Of the model.
    """

    rows: slice
    columns: slice
    given: Float32
    restored: Float32
    half_width: Float32
    filtered: Float32 | None
    deconvolved: Float32 | None
    radius_px: float
    predicted_radius_px: float
    profile: Profile
    told: bool
    radii_px: Float32
    spectrum_nats: Float32
    light_nats: Float32
    cycles_per_px: Float32
    power: Float32
    zeros_cycles_per_px: Float32
    noise: NoiseColour | None
    digest: str


def explain(
    image: Image,
    model: LoadedModel,
    *,
    optics: OpticalSystem | None = None,
    at: tuple[int, int] | None = None,
) -> Explanation:
    """Restore an image and say what it rests on in one square of it.

    Parameters
    ----------
    image : ndarray, shape [Y, X] or [Y, X, 3]
    model : LoadedModel
        Of a network that sees the estimated blur.
    optics : OpticalSystem, optional
        Where known, as :func:`refocus.model.restore.restore` takes it.
    at : (row, column), optional
        The square, of `refocus.model.blur_estimate.WINDOW_PX`, lies about this pixel; where not given, where spectra
        tell most.

    Raises
    ------
    UnsupportedImage
        If the image is no single plane, or `at` lies outside it.
    ModelUnfit
        If the network estimates no blur, so that there is nothing to show.
    """
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] != 3):
        raise UnsupportedImage(f"an image of shape {image.shape} was given; expected one plane, [Y, X] or [Y, X, 3].")
    if at is not None and not all(0 <= place < length for place, length in zip(at, image.shape[:2], strict=True)):
        raise UnsupportedImage(f"row and column {at} lie outside an image of {image.shape[0]} x {image.shape[1]} px.")
    config = model.package.config
    if not config.network.sees_blur:
        raise ModelUnfit(f"{config.name} is a network that estimates no blur; there is nothing to explain.")
    axes = "YXS" if image.ndim == 3 else "YX"
    found = model.restore(image, axes=axes, optics=optics, with_scale=True)
    assert found.scale is not None
    half = config.calibration.half_width_of(found.scale, found.blur_radius_px, stride_px=found.stride_px, axes=axes)
    # Networks of one channel restored colours one by one; the first of them stands for all.
    constants = found.normalisations[0]
    channels_first = np.moveaxis(image, -1, 0) if image.ndim == 3 else image[None]
    restored_so = [channels_first] if config.channels == 3 else [channel[None] for channel in channels_first]
    specimens = [
        Specimen(plane, blanks, found.stride_px) for plane, blanks in zip(restored_so, found.blanks, strict=True)
    ]
    seen = SeenPlane(specimens[0], constants, model.device)
    blurred = model.estimated_blur(seen, None if optics is None else nearest_profile(optics))
    assert blurred is not None
    blurred = blurred.moved(specimens[0].window)
    shown = np.concatenate([specimen.everywhere()[0] for specimen in specimens])
    row, column = _window(blurred, at)
    rows, columns = (
        _about(centre, length)
        for centre, length in zip(
            at or (blurred.centres_y_px[row], blurred.centres_x_px[column]), image.shape[:2], strict=True
        )
    )
    proposals = _proposals(model, shown, constants, blurred, rows, columns)
    cycles, power = power_spectrum(constants.apply(shown[:, rows, columns]).mean(0))
    radius_px = float(blurred.over(rows, columns)[0].mean())
    levels = len(config.network.noise_levels)
    return Explanation(
        rows=rows,
        columns=columns,
        given=image[rows, columns].astype(np.float32),
        restored=found.pixels[rows, columns].astype(np.float32),
        half_width=half[rows, columns],
        filtered=proposals[levels // 2] if levels else None,
        deconvolved=proposals[-1] if config.network.deconvolution else None,
        radius_px=radius_px,
        predicted_radius_px=_predicted(found, rows, columns),
        profile=PROFILES[blurred.profile],
        told=optics is not None,
        radii_px=np.array(RADII_PX, np.float32),
        spectrum_nats=blurred.spectrum_nats[row, column],
        light_nats=blurred.light_nats[row, column],
        cycles_per_px=cycles,
        power=power,
        zeros_cycles_per_px=zeros_of(radius_px, blurred.profile),
        noise=blurred.colour,
        digest=found.digest,
    )


def power_spectrum(window: Float32) -> tuple[Float32, Float32]:
    """Return spatial frequencies in cycles per pixel and the mean power at each, shape [rings], of [Y, X]."""
    taper = np.hanning(window.shape[0])[:, None] * np.hanning(window.shape[1])
    level = float((window * taper).sum() / max(taper.sum(), 1e-12))
    power = np.abs(np.fft.rfft2((window - level) * taper)) ** 2
    frequency = np.hypot(np.fft.fftfreq(window.shape[0])[:, None], np.fft.rfftfreq(window.shape[1]))
    ring = np.minimum((frequency * 2 * _RINGS).astype(int), _RINGS).ravel()
    counts = np.bincount(ring, minlength=_RINGS + 1)[:_RINGS]
    sums = np.bincount(ring, power.ravel(), minlength=_RINGS + 1)[:_RINGS]
    held = counts > 0
    cycles = (np.arange(_RINGS) + 0.5) / (2 * _RINGS)
    return cycles[held].astype(np.float32), (sums[held] / counts[held]).astype(np.float32)


def zeros_of(radius_px: float, profile: int) -> Float32:
    """Return the frequencies, in cycles per pixel, at which a blur's transfer function changes its sign."""
    number = int(np.argmin(np.abs(np.log(np.array(RADII_PX) / radius_px))))
    transfer = widened(blur_ladder().defocused[profile, number], radius_px / RUNG_RATIO**number)
    # What lies beyond the objective's own cutoff is rounding.
    seen = (blur_ladder().in_focus[profile] > 1e-3) & (transfer.abs() > 1e-6)
    sign = transfer[seen].sign()
    zeros: Float32 = cycles_per_px()[seen][1:][sign[1:] != sign[:-1]].numpy()
    return zeros


def _window(blurred: BlurEstimate, at: tuple[int, int] | None) -> tuple[int, int]:
    """Row and column of the estimate's window nearest to a place, or of the one whose spectrum says most."""
    if at is None:
        says = np.ptp(blurred.spectrum_nats, axis=-1)
        row, column = divmod(int(says.argmax()), says.shape[1])
        return row, column
    centres = (blurred.centres_y_px, blurred.centres_x_px)
    row, column = (int(np.abs(known - place).argmin()) for known, place in zip(centres, at, strict=True))
    return row, column


def _about(centre: float, length: int) -> slice:
    side = min(WINDOW_PX, length)
    start = int(np.clip(round(centre - 0.5 * (side - 1)), 0, length - side))
    return slice(start, start + side)


def _predicted(found: Restoration, rows: slice, columns: slice) -> float:
    cut = [slice(part.start // found.stride_px, -(-part.stop // found.stride_px)) for part in (rows, columns)]
    return float(np.median(found.blur_radius_px[:, cut[0], cut[1]]))


@torch.inference_mode()
def _proposals(
    model: LoadedModel,
    channels_first: Image,
    constants: Normalisation,
    blurred: BlurEstimate,
    rows: slice,
    columns: slice,
) -> list[Float32]:
    """What undoing the blur gives by itself, in the image's units and order of axes."""
    around = [
        slice(max(part.start - _SURROUNDINGS_PX, 0), min(part.stop + _SURROUNDINGS_PX, length))
        for part, length in zip((rows, columns), channels_first.shape[1:], strict=True)
    ]
    normalised = constants.apply(channels_first[:, around[0], around[1]])
    together = model.package.config.channels
    blur = blurred.over(*around)
    # A network of three channels sees grey images three times, one of one channel each colour by itself.
    batches = [np.repeat(normalised, together, 0)] if len(normalised) == 1 else np.split(normalised, 3 // together)
    inner = [
        slice(part.start - wide.start, part.stop - wide.start)
        for part, wide in zip((rows, columns), around, strict=True)
    ]
    by_batch = [
        model.network.proposals(torch.from_numpy(np.concatenate([batch, blur])[None]).to(model.device))
        for batch in batches
    ]
    found = []
    for versions in zip(*by_batch, strict=True):
        values = torch.cat(versions, 1)[0][:, inner[0], inner[1]].cpu().numpy()
        image = constants.undo(values[: len(channels_first)], np.float32)
        found.append(np.moveaxis(image, 0, -1) if len(image) == 3 else image[0])
    return found
