"""Which microscopes and cameras training examples come from."""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from refocus.optics.settings import RGB_WAVELENGTHS_UM


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    low, high = interval
    if not (math.isfinite(low) and math.isfinite(high) and 0 <= low <= high):
        raise ValueError(f"{interval} is not a range; expected two finite numbers, 0 <= low <= high.")
    return interval


Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class OpticsRange(BaseModel):
    """What microscopes and cameras the examples come from; every sample draws its own.

    Parameters
    ----------
    numerical_aperture, wavelength_um, pixel_size_um : (low, high)
        Aperture and wavelength uniform, pixel size log-uniform within what `pixels_per_resolution` leaves.
    pixels_per_resolution : (low, high)
        ``pixel_size NA / wavelength``: 0.25 samples the cutoff exactly, 0.46 is a 20x 0.75 objective on 6.5 um pixels.
        Keeps magnification and aperture together as real microscopes do.
    refractive_index : float
    rgb_wavelengths_um : (red, green, blue)
        What brightfield colour samples see.
    condenser_ratio : (low, high)
        Brightfield: the condenser's aperture relative to the objective's.
    blur_radius_px : (low, high)
        Geometric radius of the defocus. The default reaches 10 um at NA 0.75 and 0.325 um pixels.
    in_focus_share, near_focus_share : float
        Share of samples at exactly z = 0, and of samples within `near_focus_depths` depths of field of it.
    near_focus_depths : float
    out_of_range_share : float
        Share of samples between one and two times the largest blur (examples to abstain from).
    plain_psf_share : float
        Share, among samples beyond one depth of field, that is convolved with the plain PSF (see the module's text).
    spherical_waves : float
        RMS over samples of primary spherical aberration (RMS waves over the pupil).
    tilt_share, tilt_blur_px
        Share of tilted samples, and the (low, high) change of the signed blur radius from centre to edge of the crop.
    haze_share, haze_weight
        Share of samples with an out-of-focus layer, and its (low, high) brightness relative to the image.
    vignetting_share, vignetting
        Share of samples, and the (low, high) loss of light at a corner.
    photons_at_peak : (low, high)
        Log-uniform. Photo-electrons at the peak: the caller's, or the mean of the in-focus crop's brightest 0.1%.
    background : (low, high)
        Extra light relative to the peak: it adds shot noise, to image and target alike. Fluorescence only.
    background_share : float
    read_noise_electrons : (low, high)
    offset : (low, high)
        Camera pedestal relative to the peak, on image and target alike.
    processed_share, processed_cutoff_per_px
        Share of samples whose noise falls with frequency f as ``exp(-(f / cutoff)^order)`` in power, as in images that
        were smoothed, enlarged, compressed or interpolated from a colour camera's mosaic; the (low, high) cutoff in
        cycles per pixel is drawn log-uniformly, the order is 2, 4 or 8.
    saturation_share, saturation
        Share of samples whose camera saturates at a (low, high) fraction of the in-focus peak (image and target).
    bit_depths : tuple of int
        Drawn uniformly. The full scale lies one to four times above the peak.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    numerical_aperture: Interval = (0.3, 0.95)
    wavelength_um: Interval = (0.45, 0.7)
    pixel_size_um: Interval = (0.1, 0.65)
    pixels_per_resolution: Interval = (0.16, 0.8)
    refractive_index: Annotated[float, Field(gt=0)] = 1.0
    rgb_wavelengths_um: tuple[float, float, float] = RGB_WAVELENGTHS_UM
    condenser_ratio: Interval = (0.5, 1.0)
    blur_radius_px: Interval = (0.0, 35.0)
    in_focus_share: Share = 0.15
    near_focus_share: Share = 0.20
    near_focus_depths: Annotated[float, Field(gt=0)] = 3.0
    out_of_range_share: Share = 0.0
    plain_psf_share: Share = 0.2
    spherical_waves: Annotated[float, Field(ge=0)] = 0.03
    tilt_share: Share = 0.15
    tilt_blur_px: Interval = (0.5, 6.0)
    haze_share: Share = 0.15
    haze_weight: Interval = (0.05, 0.5)
    vignetting_share: Share = 0.2
    vignetting: Interval = (0.05, 0.4)
    photons_at_peak: Interval = (100.0, 20000.0)
    background: Interval = (0.0, 0.5)
    background_share: Share = 0.5
    read_noise_electrons: Interval = (0.0, 5.0)
    offset: Interval = (0.0, 0.05)
    processed_share: Share = 0.0
    processed_cutoff_per_px: Interval = (0.12, 0.5)
    saturation_share: Share = 0.05
    saturation: Interval = (0.6, 1.0)
    bit_depths: tuple[int, ...] = (8, 12, 14, 16)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name in ("numerical_aperture", "wavelength_um", "pixel_size_um", "pixels_per_resolution"):
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name} starts at {getattr(self, name)[0]}; expected more than 0.")
        if self.photons_at_peak[0] <= 0:
            raise ValueError(f"photons_at_peak starts at {self.photons_at_peak[0]}; expected more than 0.")
        if self.processed_cutoff_per_px[0] <= 0:
            raise ValueError(
                f"processed_cutoff_per_px starts at {self.processed_cutoff_per_px[0]}; expected more than 0."
            )
        if self.numerical_aperture[1] >= self.refractive_index:
            raise ValueError(
                f"numerical_aperture reaches {self.numerical_aperture[1]}, which needs a refractive_index above it, "
                f"not {self.refractive_index}."
            )
        shares = self.in_focus_share + self.near_focus_share + self.out_of_range_share
        if shares > 1.0:
            raise ValueError(f"in_focus_share, near_focus_share and out_of_range_share add to {shares}; at most 1.")
        if not 0.1 <= self.condenser_ratio[0] <= self.condenser_ratio[1] <= 1.0:
            raise ValueError(f"condenser_ratio is {self.condenser_ratio}; expected a range within 0.1 and 1.")
        if self.blur_radius_px[1] <= 0:
            raise ValueError("blur_radius_px ends at 0; expected room for some defocus.")
        if not self.bit_depths or not all(1 <= bits <= 16 for bits in self.bit_depths):
            raise ValueError(f"bit_depths is {self.bit_depths}; expected one or more of 1 to 16.")
        return self

    @property
    def largest_blur_px(self) -> float:
        """Largest geometric radius drawn anywhere in a crop, in pixels."""
        farthest = self.blur_radius_px[1] * (2.0 if self.out_of_range_share > 0 else 1.0)
        return farthest + (self.tilt_blur_px[1] if self.tilt_share > 0 else 0.0)
