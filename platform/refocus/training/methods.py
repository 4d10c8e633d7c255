"""Packages as methods of an evaluation: restored image, calibrated interval, gate and consistency in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from refocus.model.abstain import flagged_share
from refocus.model.checkpoint import ModelPackage
from refocus.model.consistency import check_consistency
from refocus.model.evaluation import SeamCheck
from refocus.model.restore import LoadedModel, Precision
from refocus.optics.settings import OpticalSystem
from refocus.training.evaluate import Method, Restored

Image = npt.NDArray[Any]


def network_method(
    package: ModelPackage,
    *,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    check: bool = True,
    optics: OpticalSystem | None = None,
) -> Method:
    """Return a method that restores with `package`.

    Parameters
    ----------
    package : ModelPackage
    device, precision
        See `LoadedModel`.
    check : bool
        Also judge tiles with the package's gate and blur the output again; costs more than the network itself.
    optics : OpticalSystem, optional
        Told to the model, as files with OME metadata tell it.
    """
    model = LoadedModel(package, device=device, precision=precision)
    gate, calibration, absorbing = package.config.gate, package.config.calibration, package.config.absorbing

    def method(image: Image) -> Restored:
        colour = len(image) == 3
        axes = "YXS" if colour else "CYX"
        given = np.moveaxis(image, 0, -1) if colour else image
        found = model.restore(np.ascontiguousarray(given, np.float32), axes=axes, optics=optics, with_scale=True)
        assert found.scale is not None
        half = calibration.half_width_of(found.scale, found.blur_radius_px, stride_px=found.stride_px, axes=axes)
        pixels = np.moveaxis(found.pixels, -1, 0) if colour else found.pixels
        blur = found.median_blur_radius_px
        # Of colours that were restored one by one each has blanks of its own, and those of all are looked for again.
        blanks = found.blanks[0] if len(found.blanks) == 1 else None
        flagged = residual = None
        if check:
            residual = check_consistency(image, pixels, blur, blanks=blanks).noise_ratio
        if check and gate is not None:
            flagged = flagged_share(gate.judge(image, absorbing=absorbing, blanks=blanks, device=model.device))
        return Restored(
            pixels=pixels,
            half_width=np.moveaxis(half, -1, 0) if colour else half,
            blur_radius_px=blur,
            flagged_share=flagged,
            residual=residual,
        )

    return method


def check_seams(
    package: ModelPackage, *, side_px: int = 768, tile_px: int = 192, device: torch.device | str | None = None
) -> SeamCheck:
    """Restore a blurred pattern whole and in tiles and return the largest difference, in grey levels of 8 bits.

    The pattern holds spots of all sizes at all distances, so that there is something to disagree on at every seam.
    """
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side_px)[:, None], np.fft.rfftfreq(side_px)) + 1.0 / side_px
    spectrum = np.fft.rfft2(rng.normal(size=(side_px, side_px))) * frequency**-1.2
    pattern = np.fft.irfft2(spectrum * np.exp(-((frequency / 0.08) ** 2)), s=(side_px, side_px))
    pattern = (pattern - pattern.min()) / np.ptp(pattern)
    image = (rng.poisson(1000 * pattern) / 1000).astype(np.float32)
    axes = "YX"
    if package.config.channels == 3:
        image, axes = np.repeat(image[..., None], 3, -1), "YXS"
    whole, tiled = (
        LoadedModel(package, device=device, precision="fp32", tile_px=tile).restore(image, axes=axes).pixels
        for tile in (2 * side_px, tile_px)
    )
    span = float(np.ptp(whole)) or 1.0
    return SeamCheck(
        largest_grey_levels=255.0 * float(np.abs(whole - tiled).max()) / span, side_px=side_px, tile_px=tile_px
    )
