"""Training pairs from sharp images by physics: random optics, random defocus, a random camera.

What is modelled. A sharp image is already an image: the object seen in focus through some objective and pixels.
Seen at distance z by the same objective its spectrum is multiplied by ``H_z / H_0``, the ratio of the defocused
to the in-focus transfer function. For any pupil without aberrations ``|H_z| <= H_0`` (Cauchy-Schwarz on the
autocorrelation), so the ratio never amplifies, and at z = 0 it is exactly 1. Where ``H_0`` fades towards the cutoff of
the sampled objective, real images hold noise, or detail of a better objective; the ratio tends to 1 there and would
let that pass unblurred. So it is blended into a Gaussian of the geometric blur's width, F_z:

    G_z = (H_z H_0 + eps F_z) / (H_0^2 + eps),     F_z = exp(-(pi r f)^2 / 2),     eps = 0.03

r being the geometric radius (a disc of radius r and this Gaussian have equal variance). G_0 = 1 everywhere, DC is 1,
``|G| <= 1`` (imposed where aberrations could break it). The kernel has negative lobes where the image is sharper than
the sampled objective could make it; on 24 real images less than 0.02% of the light came out negative, at any blur and
pixel size of the default range, and is cut.

Convolving with the plain PSF instead images the object through the in-focus PSF twice. From one depth of field on the
two hardly differ (the blur dwarfs the in-focus PSF), nearer they must not be mixed: an in-focus input would come out
blurred and the network would learn to sharpen what is sharp. `plain_psf_share` of the samples beyond one depth of field
use it, since others simulate so and a network should not care.

Validity: thin specimens (one plane, a tilted plane, or that plane with out-of-focus haze) in incoherent light. That is
fluorescence as it is. In brightfield the transmitted intensity is imaged with the weak-object transfer function of a
condenser that fills `condenser_ratio` of the pupil (:mod:`refocus.optics.brightfield`): incoherent imaging at ratio 1,
more depth of field below. The bound above holds for it too. Refraction is left out. Its radius r, and the
`blur_radius_px` returned, are those of the light that is used: the condenser's aperture where that is the smaller one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from refocus.errors import ConfigurationError, InputError
from refocus.optics.camera import coloured, shot_noise
from refocus.optics.formation import mirrored_to
from refocus.optics.ladder import nearest_profiles
from refocus.optics.optics_range import OpticsRange
from refocus.optics.plan import DRAWS, Plan
from refocus.optics.psf import fast_fft_length
from refocus.optics.transfer import RoundTransfer, interpolate, source_disc
from refocus.zstack import Modality

__all__ = ["Defocused", "OpticsRange", "RandomDefocus"]

_EPSILON = 0.03


@dataclass(frozen=True, slots=True)
class Defocused:
    """A batch of training pairs.

    Attributes
    ----------
    image : Tensor, shape [B, C, h, w]
        What the camera recorded out of focus, in the units of the sharp image.
    in_focus : Tensor, shape [B, C, h, w]
        Without noise: the sharp image with the same haze, vignetting, background, offset and saturation.
    blur_radius_px : Tensor, shape [B]
        Geometric radius at the crop's centre, not negative.
    defocus_um : Tensor, shape [B]
        Signed, at the crop's centre.
    numerical_aperture, pixel_size_um, photons_at_peak : Tensor, shape [B]
        What was drawn.
    profile : Tensor, shape [B], int64
        Nearest to the objective among those of :mod:`refocus.optics.ladder`.
    """

    image: Tensor
    in_focus: Tensor
    blur_radius_px: Tensor
    defocus_um: Tensor
    numerical_aperture: Tensor
    pixel_size_um: Tensor
    photons_at_peak: Tensor
    profile: Tensor


class RandomDefocus:
    """Blurs sharp images as random microscopes would; no PSF is cached, because none needs to be.

    Transfer functions of round pupils cost less here than the noise (:class:`refocus.optics.transfer.RoundTransfer`),
    so every sample has optics of its own, drawn from a seed of its own: it depends on nothing else in the batch.

    Parameters
    ----------
    optics : OpticsRange
    crop_px : int
        Side of the pairs. Input should be larger by `margin_px` on every side; where it is smaller it is mirrored.
    modality : {'fluorescence', 'brightfield'}
        Brightfield draws no background light (the lamp is the background) and haze absorbs instead of shining;
        three channels share z and aperture at `rgb_wavelengths_um`.
    device : torch.device or str, optional
        Of the sharp images.

    Attributes
    ----------
    margin_px : int
        How far light reaches from outside into the crop.
    input_px : int
        Side of input that is used in full; larger input is cropped at its centre.

    Examples
    --------
    >>> blur = RandomDefocus(OpticsRange(), crop_px=64, modality="fluorescence")
    >>> pair = blur(torch.rand(2, 1, 128, 128), seeds=torch.tensor([7, 8]))
    >>> pair.image.shape, pair.blur_radius_px.shape
    (torch.Size([2, 1, 64, 64]), torch.Size([2]))
    """

    def __init__(
        self,
        optics: OpticsRange,
        *,
        crop_px: int,
        modality: Modality = "fluorescence",
        device: torch.device | str = "cpu",
    ) -> None:
        if modality not in ("fluorescence", "brightfield"):
            raise ConfigurationError(
                f"random defocus is modelled for fluorescence and brightfield, not {modality}: phase contrast is "
                "coherent and its defocus is no convolution. Train it on measured z-stacks."
            )
        if crop_px < 1:
            raise ConfigurationError(f"crop_px is {crop_px}; expected at least 1.")
        self.optics = optics
        self.crop_px = crop_px
        self.modality = modality
        self.device = torch.device(device)
        self.margin_px = math.ceil(1.15 * optics.largest_blur_px) + 4
        self.input_px = fast_fft_length(crop_px + 2 * self.margin_px)

        largest = 2.0 * math.pi * optics.pixels_per_resolution[1] * optics.largest_blur_px
        # The sine condition keeps tan over sin within 3.3 of 1 up to NA 0.95: the unused rim of the pupil is steeper.
        steepest = _steepest(optics) if modality == "brightfield" else 1.0
        self._transfer = RoundTransfer.reaching(largest, steepest_pupil=largest * steepest, device=self.device)
        # Profiles run over cycles per pixel up to the corner of the spectrum, fine enough for the largest disc's
        # rings (16 samples a period), and are read at each frequency of the padded crop by linear interpolation.
        samples = 64 * math.ceil(16.0 * optics.largest_blur_px * math.sqrt(0.5) / 64) + 65
        self._cycles_per_px = torch.linspace(0.0, math.sqrt(0.5) + 1e-6, samples, device=self.device)
        down = torch.fft.fftfreq(self.input_px, device=self.device)
        across = torch.fft.rfftfreq(self.input_px, device=self.device)
        # A round profile: rows below zero frequency mirror those above.
        place = (across[:, None] ** 2 + across**2).sqrt() / self._cycles_per_px[1]
        self._lower = place.floor().to(torch.int64).reshape(-1)
        self._fraction = (place.reshape(-1) - self._lower).clamp(0.0, 1.0)
        self._down, self._across = down, across

    def __call__(
        self,
        sharp: Tensor,
        generator: torch.Generator | None = None,
        *,
        seeds: Tensor | None = None,
        pixel_size_um: Tensor | None = None,
        peak: Tensor | None = None,
    ) -> Defocused:
        """Draw optics for each image and look at it through them.

        Parameters
        ----------
        sharp : Tensor, shape [B, C, H, W]
            Linear intensity in any unit, not negative, zero where there is no light.
        generator : torch.Generator, optional
            Gives one seed a sample where `seeds` is not given. On the CPU.
        seeds : Tensor, shape [B], int64, optional
            One seed a sample; the sample's result depends on it and the sample alone.
        pixel_size_um : Tensor, shape [B], optional
            Known pixel sizes; NaN where unknown. They win over the range.
        peak : Tensor, shape [B], optional
            Intensity at the peak of the image that the sample was cut from, which the exposure follows; NaN where
            unknown. Without it each crop counts as exposed for itself, and empty ones come out too clean.

        Returns
        -------
        Defocused

        Raises
        ------
        InputError
            If shapes do not fit or `sharp` is not float32.

        Notes
        -----
        Optics are drawn on the CPU and are equal on every device. Noise is drawn on the device of the images:
        equal seeds give equal noise on one kind of device.
        """
        sharp, seed_list = self._checked(sharp, generator, seeds)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            drawn = [torch.Generator().manual_seed(seed) for seed in seed_list]
            uniform = torch.stack([torch.rand(DRAWS, generator=g) for g in drawn])
            plan = Plan.draw(self.optics, uniform, self.modality, sharp.shape[1], pixel_size_um)
            plan = plan.to(self.device)
            scene = self._shaded(self._padded(sharp), plan)
            image, in_focus = self._formed(scene, plan)
            return self._recorded(image, in_focus, plan, seed_list, peak)

    def _checked(
        self, sharp: Tensor, generator: torch.Generator | None, seeds: Tensor | None
    ) -> tuple[Tensor, list[int]]:
        if sharp.ndim != 4 or sharp.dtype != torch.float32:
            raise InputError(f"sharp has shape {tuple(sharp.shape)} and {sharp.dtype}; expected float32 [B, C, H, W].")
        if min(sharp.shape[-2:]) < self.crop_px:
            raise InputError(f"sharp is {tuple(sharp.shape[-2:])}, smaller than the crop of {self.crop_px} px.")
        if seeds is None:
            if generator is None:
                raise InputError("neither generator nor seeds was given; random defocus is never unseeded.")
            seeds = torch.randint(0, 2**62, (sharp.shape[0],), generator=generator, device=generator.device)
        if seeds.shape != (sharp.shape[0],) or seeds.is_floating_point():
            raise InputError(f"seeds has shape {tuple(seeds.shape)} and {seeds.dtype}; expected int64 [{len(sharp)}].")
        return sharp.to(self.device), [int(seed) % 2**63 for seed in seeds.tolist()]

    def _padded(self, sharp: Tensor) -> Tensor:
        """Centre `sharp` on the transform's square: cropped where larger, mirrored where smaller."""
        lacking = [self.input_px - size for size in sharp.shape[-2:]]
        if all(lack <= 0 for lack in lacking):
            top, left = (-lack // 2 for lack in lacking)
            return sharp[..., top : top + self.input_px, left : left + self.input_px].clamp_min(0.0)
        above, left = (lack // 2 for lack in lacking)
        return mirrored_to(sharp, (self.input_px, self.input_px), (above, left)).clamp_min_(0.0)

    def _shaded(self, scene: Tensor, plan: Plan) -> Tensor:
        """Vignetted illumination, quadratic about a centre of its own, 1 where brightest; writes into `scene`."""
        shaded = plan.vignette.nonzero().flatten()
        if len(shaded):
            position = torch.arange(self.input_px, device=self.device) - (self.input_px - 1) / 2
            position = position / (0.5 * self.crop_px)
            y = (position[:, None] - plan.vignette_centre[shaded, 0, None, None]) ** 2
            x = (position[None, :] - plan.vignette_centre[shaded, 1, None, None]) ** 2
            light = (1.0 - plan.vignette[shaded, None, None] * (x + y) / 4.0).clamp_min(0.2)
            scene[shaded] *= light[:, None]
        return scene

    def _formed(self, scene: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """The noise-free image at each sample's distance, and its in-focus counterpart, cropped."""
        batch, channels = scene.shape[:2]
        level = torch.zeros((), device=self.device)
        if self.modality == "brightfield":
            # Stain takes light away from the lamp's level, so a layer out of focus subtracts.
            level = scene.amax((-2, -1), keepdim=True)
        spectrum = torch.fft.rfft2(scene)

        tilted = plan.tilt.nonzero().flatten()
        hazy = plan.haze_weight.nonzero().flatten()
        rows = torch.arange(batch, device=self.device)
        index = torch.cat([rows, tilted, tilted, hazy, hazy])
        blur = torch.cat(
            [
                plan.blur_px,
                (plan.blur_px - plan.tilt)[tilted],
                (plan.blur_px + plan.tilt)[tilted],
                (plan.blur_px + plan.haze_offset_px)[hazy],
                plan.haze_offset_px[hazy],
            ]
        )
        gain = self._gain(plan, index, blur, channels)
        centre, before, after, haze_seen, haze_focused = torch.split(
            gain, [batch, len(tilted), len(tilted), len(hazy), len(hazy)]
        )
        seen = _scaled(spectrum, centre)
        if len(tilted):
            # Each strip of the specimen shines through its own PSF: weights first, then blur, and light is kept.
            ramp = self._ramp(plan.tilt_azimuth[tilted])
            low = torch.fft.rfft2(scene[tilted] * (-ramp).clamp_min(0.0))
            high = torch.fft.rfft2(scene[tilted] * ramp.clamp_min(0.0))
            middle = _scaled(spectrum[tilted] - low - high, centre[tilted])
            seen[tilted] = middle + _scaled(low, before) + _scaled(high, after)
        focused = scene
        if len(hazy):
            weight = plan.haze_weight[hazy].reshape(-1, 1, 1, 1)
            # Another specimen of like kind at no cost: the image turned by 180 degrees and shifted.
            shift = plan.haze_shift[hazy] * self.input_px
            turns = self._down[:, None] * shift[:, 0, None, None] + self._across * shift[:, 1, None, None]
            other = spectrum[hazy].conj() * torch.polar(torch.ones_like(turns), 2.0 * math.pi * turns)[:, None]
            other[..., 0, 0] -= level.expand(batch, channels, 1, 1)[hazy][..., 0, 0] * self.input_px**2
            seen[hazy] += _scaled(other, weight * haze_seen)
            focused = scene.clone()
            focused[hazy] += weight * torch.fft.irfft2(_scaled(other, haze_focused), s=scene.shape[-2:])
        edge = (self.input_px - self.crop_px) // 2
        window = slice(edge, edge + self.crop_px)
        image = torch.fft.irfft2(seen, s=scene.shape[-2:])[..., window, window]
        focused = focused[..., window, window]
        # In focus is identity by definition, not up to the transform's rounding.
        still = (plan.blur_px == 0) & (plan.tilt == 0)
        image = torch.where(still.reshape(-1, 1, 1, 1), focused, image)
        return image.clamp_min_(0.0), focused.clamp_min(0.0)

    def _gain(self, plan: Plan, index: Tensor, blur_px: Tensor, channels: int) -> Tensor:
        """``G_z`` on the padded square's spectrum, shape [M, C, P, P // 2 + 1]; signed blur [M] of samples `index`."""
        na, pixel = plan.numerical_aperture[index, None], plan.pixel_size_um[index, None]
        wavelength = plan.wavelength_um[index]
        n = self.optics.refractive_index
        sine = na / n
        z_um = blur_px[:, None] / plan.px_per_um[index, None]
        squared = self._transfer.pupil_rho_squared
        cosine = (1.0 - squared * sine**2).sqrt()
        spherical = plan.spherical_waves[index, None] * (math.sqrt(5.0) * (6.0 * squared**2 - 6.0 * squared + 1.0))
        # One row a sample and channel: colours differ in wavelength alone.
        per_um = (n * (cosine - 1.0))[:, None] / wavelength[..., None]
        waves = (z_um[:, None] * per_um + spherical[:, None]).flatten(0, 1)
        reference = spherical[:, None].expand(-1, channels, -1).flatten(0, 1)
        even = torch.ones_like(waves)
        if self.modality == "brightfield":
            ratio = plan.condenser_ratio[index].repeat_interleave(channels)
            source = source_disc(squared, ratio)
            table = self._transfer(even, waves, source).real
            in_focus = self._transfer(even, reference, source).real
        else:
            table, in_focus = self._transfer(even, waves), self._transfer(even, reference)

        q = ((na * pixel) / wavelength).flatten()[:, None]
        position = self._cycles_per_px / q / self._transfer.frequency_step
        h_z, h_0 = interpolate(table, position), interpolate(in_focus, position)
        radius = blur_px.repeat_interleave(channels)[:, None]
        fallback = torch.exp(-0.5 * (math.pi * radius * self._cycles_per_px) ** 2)
        profile = ((h_z * h_0 + _EPSILON * fallback) / (h_0 * h_0 + _EPSILON)).clamp(-1.0, 1.0)
        profile = torch.where(plan.plain_psf[index].repeat_interleave(channels)[:, None], h_z, profile)
        half = self.input_px // 2 + 1
        below, above = (profile.index_select(1, at) for at in (self._lower, self._lower + 1))
        flat = torch.lerp(below, above, self._fraction)
        quarter = flat.reshape(-1, channels, half, half)
        # Frequencies below zero follow, from the most negative up; only rows have them.
        return torch.cat([quarter, quarter[:, :, 1:-1].flip(2)], dim=2)

    def _ramp(self, azimuth: Tensor) -> Tensor:
        """A linear ramp over the crop, -1 to 1 from edge to edge along `azimuth`, flat beyond, shape [T, 1, P, P]."""
        position = (torch.arange(self.input_px, device=self.device) - (self.input_px - 1) / 2) / (0.5 * self.crop_px)
        ramp = position[:, None] * azimuth.sin()[:, None, None] + position * azimuth.cos()[:, None, None]
        return ramp.clamp(-1.0, 1.0)[:, None]

    def _recorded(
        self, image: Tensor, in_focus: Tensor, plan: Plan, seeds: list[int], known_peak: Tensor | None
    ) -> Defocused:
        """Light, offset, noise, saturation and rounding, back in the units of the sharp image."""

        def column(values: Tensor) -> Tensor:
            return values.reshape(-1, 1, 1, 1)

        # The brightest 0.1% together keep one hot pixel from setting the exposure.
        flat = in_focus.flatten(1)
        brightest = flat.topk(max(1, flat.shape[1] // 1000), dim=1).values
        own = brightest.mean(1)
        if known_peak is not None:
            known = known_peak.to(own)
            own = torch.where(known.isfinite() & (known > 0), known, own)
        peak = column(own).clamp_min(1e-12)
        limit = torch.where(column(plan.saturated), peak, torch.maximum(column(brightest[:, 0]), peak))
        background = column(plan.background) * peak
        image, in_focus = image + background, in_focus + background
        per_unit = column(plan.photons_at_peak) / peak
        read = column(plan.read_noise_electrons)
        noisy = torch.empty_like(image)
        for i, seed in enumerate(seeds):
            # A second stream for noise: the first has been used for optics, on the CPU.
            generator = torch.Generator(self.device).manual_seed(seed ^ 0x5DEECE66D)
            noisy[i] = shot_noise(image[i] * per_unit[i], read_noise=read[i], generator=generator)
        noisy = noisy / per_unit
        processed = plan.noise_cutoff_per_px.isfinite().nonzero().flatten()
        if len(processed):
            noise = (noisy - image)[processed]
            fall = (column(values[processed]) for values in (plan.noise_cutoff_per_px, plan.noise_order))
            noisy[processed] = image[processed] + coloured(noise, *fall)
        offset = column(plan.offset) * peak
        full = column(plan.full_scale) * (limit + background) + offset
        # The converter's step; it ends at zero below and at the full scale above.
        step = full / (2.0 ** column(plan.bit_depth) - 1.0)
        recorded = (torch.round((noisy + offset) / step) * step).clamp_min(0.0).minimum(full)
        return Defocused(
            image=recorded,
            in_focus=(in_focus + offset).minimum(full),
            blur_radius_px=plan.blur_px.abs(),
            defocus_um=plan.blur_px / plan.px_per_um,
            numerical_aperture=plan.numerical_aperture,
            pixel_size_um=plan.pixel_size_um,
            photons_at_peak=plan.photons_at_peak,
            profile=nearest_profiles(
                plan.numerical_aperture * plan.pixel_size_um / plan.wavelength_um.mean(1),
                plan.numerical_aperture / self.optics.refractive_index,
            ),
        )


def _scaled(spectrum: Tensor, gain: Tensor) -> Tensor:
    """Complex times real without first making the real factor complex, as the plain product does."""
    return torch.view_as_complex(torch.view_as_real(spectrum.resolve_conj()) * gain[..., None])


def _steepest(optics: OpticsRange) -> float:
    """How much wider the whole pupil would blur than the narrowest condenser's part of it."""
    rim = optics.numerical_aperture[1] / optics.refractive_index
    lit = optics.condenser_ratio[0] * rim
    return (rim / math.sqrt(1.0 - rim**2)) / (lit / math.sqrt(1.0 - lit**2))
