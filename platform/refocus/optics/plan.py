"""What one batch of training examples is made with: numbers drawn from ranges, a row a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from refocus.optics.optics_range import OpticsRange
from refocus.zstack import Modality

#: Uniform numbers a sample.
DRAWS = 40


@dataclass(frozen=True, slots=True)
class Plan:
    """What was drawn, each of shape [B] unless said otherwise; blurs are signed radii in pixels."""

    numerical_aperture: Tensor
    wavelength_um: Tensor  # [B, C]
    pixel_size_um: Tensor
    spherical_waves: Tensor
    condenser_ratio: Tensor
    px_per_um: Tensor  # blur radius a micrometre of defocus
    blur_px: Tensor
    plain_psf: Tensor
    tilt: Tensor
    tilt_azimuth: Tensor
    haze_weight: Tensor
    haze_offset_px: Tensor
    haze_shift: Tensor  # [B, 2]
    vignette: Tensor
    vignette_centre: Tensor  # [B, 2]
    photons_at_peak: Tensor
    background: Tensor
    read_noise_electrons: Tensor
    noise_cutoff_per_px: Tensor  # infinite where noise is white
    noise_order: Tensor
    offset: Tensor
    saturated: Tensor
    full_scale: Tensor
    bit_depth: Tensor

    def to(self, device: torch.device) -> Plan:
        return Plan(*(getattr(self, name).to(device) for name in self.__slots__))

    @classmethod
    def draw(
        cls, optics: OpticsRange, uniform: Tensor, modality: Modality, channels: int, known_pixel_um: Tensor | None
    ) -> Plan:
        """Turn uniform numbers [B, 40] into optics. Every quantity has its own columns: adding one moves no other."""

        def between(column: int, interval: tuple[float, float]) -> Tensor:
            return interval[0] + (interval[1] - interval[0]) * uniform[:, column]

        def chosen(column: int, share: float, value: Tensor) -> Tensor:
            return torch.where(uniform[:, column] < share, value, torch.zeros_like(value))

        na = between(0, optics.numerical_aperture)
        if modality == "brightfield" and channels == 3:
            wavelength = torch.tensor(optics.rgb_wavelengths_um).expand(len(uniform), 3)
        else:
            wavelength = between(1, optics.wavelength_um)[:, None].expand(-1, channels)
        resolution = wavelength.mean(1) / na
        low = (optics.pixels_per_resolution[0] * resolution).clamp(*optics.pixel_size_um)
        high = (optics.pixels_per_resolution[1] * resolution).clamp(*optics.pixel_size_um)
        pixel = low * (high / low) ** uniform[:, 2]
        if known_pixel_um is not None:
            known = known_pixel_um.to("cpu", torch.float32)
            pixel = torch.where(known.isfinite() & (known > 0), known, pixel)
            # An aperture that this pixel could not belong to gives way.
            q_low, q_high = optics.pixels_per_resolution
            na = na.clamp(q_low * wavelength.mean(1) / pixel, q_high * wavelength.mean(1) / pixel)
            na = na.clamp(max=0.98 * optics.refractive_index)

        # Signed blur: a sharp peak at focus, a near-focus part in depths of field, the rest uniform in pixels.
        brightfield = modality == "brightfield"
        condenser = between(29, optics.condenser_ratio) if brightfield else torch.ones_like(na)
        sine = condenser * na / optics.refractive_index
        px_per_um = sine / (1.0 - sine**2).sqrt() / pixel
        depth_px = optics.refractive_index * wavelength.mean(1) / na**2 * px_per_um
        reach = optics.blur_radius_px[1]
        near = (uniform[:, 4] * optics.near_focus_depths * depth_px).clamp(max=reach)
        far = between(4, optics.blur_radius_px)
        beyond = reach * (1.0 + uniform[:, 4])
        kind = uniform[:, 3]
        still, close = optics.in_focus_share, optics.in_focus_share + optics.near_focus_share
        blur = torch.where(kind < close, near, torch.where(kind < 1.0 - optics.out_of_range_share, far, beyond))
        blur = torch.where(kind < still, torch.zeros_like(blur), blur)
        blur = blur * torch.where(uniform[:, 5] < 0.5, -1.0, 1.0)

        tilt = chosen(6, optics.tilt_share, between(7, optics.tilt_blur_px))
        tilt = torch.where(kind < still, torch.zeros_like(tilt), tilt)
        # Haze lies clearly outside the focal plane and never where the seen blur would exceed the tables.
        away = (0.25 + 0.75 * uniform[:, 11]) * reach
        away = torch.where(uniform[:, 12] < 0.5, -away, away)
        away = torch.where((blur + away).abs() > reach, -blur.sign() * away.abs(), away)
        spherical = torch.erfinv((2.0 * uniform[:, 13] - 1.0).clamp(-0.995, 0.995)) * math.sqrt(2.0)
        photons_low, photons_high = optics.photons_at_peak
        background = chosen(18, optics.background_share, between(19, optics.background))
        cutoff_low, cutoff_high = optics.processed_cutoff_per_px
        cutoff = cutoff_low * (cutoff_high / cutoff_low) ** uniform[:, 31]
        depths = torch.tensor(optics.bit_depths, dtype=torch.float32)
        saturated = uniform[:, 23] < optics.saturation_share
        return cls(
            numerical_aperture=na,
            wavelength_um=wavelength,
            pixel_size_um=pixel,
            spherical_waves=optics.spherical_waves * spherical,
            condenser_ratio=condenser,
            px_per_um=px_per_um,
            blur_px=blur,
            plain_psf=(uniform[:, 28] < optics.plain_psf_share) & (blur.abs() > depth_px),
            tilt=tilt,
            tilt_azimuth=2.0 * math.pi * uniform[:, 8],
            haze_weight=chosen(9, optics.haze_share, between(10, optics.haze_weight)),
            haze_offset_px=away,
            haze_shift=uniform[:, 14:16],
            vignette=chosen(16, optics.vignetting_share, between(17, optics.vignetting)),
            vignette_centre=uniform[:, 25:27] - 0.5,
            photons_at_peak=photons_low * (photons_high / photons_low) ** uniform[:, 20],
            background=torch.zeros_like(background) if brightfield else background,
            read_noise_electrons=between(21, optics.read_noise_electrons),
            noise_cutoff_per_px=torch.where(uniform[:, 30] < optics.processed_share, cutoff, torch.inf),
            noise_order=2.0 ** (1.0 + (3.0 * uniform[:, 32]).floor()),
            offset=between(22, optics.offset),
            saturated=saturated,
            full_scale=torch.where(saturated, between(24, optics.saturation), 1.0 + 3.0 * uniform[:, 24]),
            bit_depth=depths[(uniform[:, 27] * len(depths)).long().clamp(max=len(depths) - 1)],
        )
