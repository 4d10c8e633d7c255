"""From tiles to what the network sees: (defocused, in-focus) pairs, formed on the training device.

Every random choice about a sample follows from ``(seed, epoch, tile index)``: neither the batch it lands in nor the
worker that draws it changes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from refocus.data.batches import TileBatch
from refocus.errors import ConfigurationError
from refocus.model.blur_estimate import fitting_blur
from refocus.optics.ladder import RADII_PX
from refocus.training.config import TrainingConfig
from refocus.training.grain import with_grain

_MASK = 2**64 - 1
_HINT, _GRAIN = 0x2545F4914F6CDD1D, 0x1B873593CC9E2D51
#: Shares of training samples whose optics are told, and of those whose radius is told beside them.
_OPTICS_SHARE, _RADIUS_SHARE = 0.6, 0.35
#: Relative error of a told radius, as large as estimates have on whole images.
_ESTIMATE_ERROR = 0.03
_UNKNOWN = -1
#: Numbers whose quantiles torch finds together; it refuses a few more.
_MOST_FOR_QUANTILES = 2**23


@dataclass(frozen=True, slots=True)
class Pairs:
    """A batch as the network learns from it.

    Parameters
    ----------
    image, target : Tensor, float32, shape [B, C, crop, crop]
        Defocused and in focus, in one normalisation.
    blur_radius_px : Tensor, shape [B]
        At the crop's centre; NaN where unknown.
    estimated_blur : Tensor, shape [B, 2], or None
        Radius and profile as the image's spectrum tells them (:mod:`refocus.model.blur_estimate`), for networks that
        see them.
    undone : tuple of Tensor
        What undoing that blur would change (:meth:`refocus.model.networks.RefocusNetwork.undone`), where it is known.
    """

    image: Tensor
    target: Tensor
    blur_radius_px: Tensor
    estimated_blur: Tensor | None = None
    undone: tuple[Tensor, ...] = ()

    def row(self, number: int) -> Pairs:
        """One pair as a batch of one."""
        return self.rows(number, number + 1)

    def rows(self, first: int, last: int) -> Pairs:
        """Some of the pairs, up to the last one and without it."""
        some = slice(first, last)
        blur = None if self.estimated_blur is None else self.estimated_blur[some]
        undone = tuple(part[some] for part in self.undone)
        return Pairs(self.image[some], self.target[some], self.blur_radius_px[some], blur, undone)


class PairMaker:
    """Turns `TileBatch` into `Pairs`: flips, zoom, random defocus for sharp rows, renormalisation.

    Parameters
    ----------
    config : TrainingConfig
    device : torch.device or str
    augment : bool
        False leaves orientation, zoom and scale alone, for validation; the defocus stays random (and repeatable).
    """

    def __init__(self, config: TrainingConfig, *, device: torch.device | str = "cpu", augment: bool = True) -> None:
        self.config = config
        self.device = torch.device(device)
        self.augment = augment
        self.defocus = config.random_defocus(str(device))

    def __call__(self, batch: TileBatch) -> Pairs:
        """Form the pairs of one batch.

        Parameters
        ----------
        batch : TileBatch
            Windows of at least `TrainingConfig.crop_px`; of `TrainingConfig.window_px` nothing is mirrored.

        Raises
        ------
        ConfigurationError
            If channels or window do not fit the recipe.
        """
        channels, height, width = batch.pixels.shape[1:]
        if channels != self.config.network.channels:
            raise ConfigurationError(
                f"the batch has {channels} channels and recipe {self.config.name!r} trains a network of "
                f"{self.config.network.channels}."
            )
        if min(height, width) < self.config.crop_px:
            raise ConfigurationError(
                f"windows are {height} x {width} px and the recipe's crop is {self.config.crop_px} px; "
                f"ask for windows of {self.config.window_px} px."
            )
        # What decides is read before the batch moves: each look at an accelerator's memory waits for its queue.
        keys = zip(batch.epoch.tolist(), batch.index.tolist(), strict=True)
        is_sharp = [bool(sharp) for sharp in batch.is_sharp.tolist()]
        grey = [row for row, tile in enumerate(batch.pixels) if channels > 1 and bool((tile == tile[:1]).all())]
        batch = batch.to(self.device)
        seeds = torch.tensor([sample_seed(self.config.seed, epoch, index) for epoch, index in keys])
        draws = torch.stack([torch.rand(8, generator=torch.Generator().manual_seed(int(s))) for s in seeds])

        inner = self.defocus.input_px
        pixels, target, zooms = [], [], []
        for row in range(len(batch)):
            zoom = self._zoom(float(draws[row, 0]))
            sharp = is_sharp[row]
            side = inner if sharp else self.config.crop_px
            pixels.append(self._view(batch.pixels[row], draws[row], zoom, side))
            if sharp and self.augment and draws[row, 7] < self.config.grain_share:
                generator = torch.Generator().manual_seed(int(seeds[row]) ^ _GRAIN)
                pixels[-1] = with_grain(pixels[-1], self.config.grain, generator, absorbing=self.config.absorbing)
            target.append(pixels[-1] if sharp else self._view(batch.target[row], draws[row], zoom, side))
            zooms.append(zoom)
        zoomed = torch.tensor(zooms, device=self.device)
        image, in_focus, blur, profiles = self._defocused(batch, is_sharp, pixels, target, seeds, zoomed)
        # Grey tiles are repeated for networks of colours, and were seen by one sensor, with one noise.
        image[grey] = image[grey, :1]
        pairs = self._renormalised(image, in_focus, blur, draws.to(self.device))
        if not self.config.network.sees_blur:
            return pairs
        return replace(pairs, estimated_blur=self._estimated_blur(pairs, profiles, seeds))

    def _zoom(self, draw: float) -> float:
        low, high = self.config.zoom
        return low * (high / low) ** draw if self.augment else 1.0

    def _view(self, image: Tensor, draws: Tensor, zoom: float, side: int) -> Tensor:
        """One of eight orientations, resampled by `zoom`, cut to `side` at the centre where larger."""
        if self.augment:
            image = torch.rot90(image, int(draws[1] * 4), (-2, -1))
            image = image.flip(-1) if draws[2] < 0.5 else image
        wanted = [min(n, math.ceil(side / zoom)) for n in image.shape[-2:]]
        image = _centre(image, *wanted)
        if zoom != 1.0:
            size = [max(round(n * zoom), min(side, self.config.crop_px)) for n in wanted]
            image = F.interpolate(image[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]
        return _centre(image, min(side, image.shape[-2]), min(side, image.shape[-1]))

    def _defocused(
        self,
        batch: TileBatch,
        is_sharp: list[bool],
        pixels: list[Tensor],
        target: list[Tensor],
        seeds: Tensor,
        zoom: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        crop = self.config.crop_px
        shape = (len(batch), batch.pixels.shape[1], crop, crop)
        image, in_focus = torch.empty(shape, device=self.device), torch.empty(shape, device=self.device)
        blur = batch.blur_radius_px * zoom
        profiles = torch.full((len(batch),), _UNKNOWN)
        for row in range(len(batch)):
            if not is_sharp[row]:
                image[row], in_focus[row] = _centre(pixels[row], crop, crop), _centre(target[row], crop, crop)
        sizes: dict[tuple[int, int], list[int]] = {}
        for row in range(len(batch)):
            if is_sharp[row]:
                sizes.setdefault((pixels[row].shape[-2], pixels[row].shape[-1]), []).append(row)
        pixel_size = batch.pixel_size_um / zoom
        for rows in sizes.values():
            at = torch.tensor(rows)
            # Tiles come in units of their image's bright percentile, which the exposure follows.
            made = self.defocus(
                torch.stack([pixels[row] for row in rows]),
                seeds=seeds[at],
                pixel_size_um=pixel_size[at],
                peak=torch.ones(len(rows)),
            )
            image[at], in_focus[at] = made.image, made.in_focus
            blur[at] = made.blur_radius_px.to(blur.dtype)
            profiles[at] = made.profile.cpu()
        return image, in_focus, blur, profiles

    def _estimated_blur(self, pairs: Pairs, profiles: Tensor, seeds: Tensor) -> Tensor:
        """Estimate as `restore` does, whose caller tells the optics or not; some samples are told near the truth.

        Crops are smaller than the windows that whole images are judged by: their estimates alone would teach a network
        to trust too little.
        """
        if not self.augment:
            return fitting_blur(pairs.image, absorbing=self.config.absorbing)
        chance = torch.stack([torch.rand(2, generator=torch.Generator().manual_seed(int(s) ^ _HINT)) for s in seeds])
        optics = (chance[:, 0] < _OPTICS_SHARE) & (profiles != _UNKNOWN)
        # Where the radius is told as well nothing is left to find.
        sought = optics & (chance[:, 0] >= _RADIUS_SHARE)
        found = torch.stack([torch.full(profiles.shape, RADII_PX[0]), profiles.float()], 1).to(self.device)
        for rows, known in ((~optics, None), (sought, profiles[sought].tolist())):
            if rows.any():
                at = rows.nonzero().flatten().to(self.device, non_blocking=True)
                found[at] = fitting_blur(pairs.image[at], profile=known, absorbing=self.config.absorbing)
        chance = chance.to(self.device)
        error = torch.special.ndtri(chance[:, 1].clamp(0.01, 0.99)) * _ESTIMATE_ERROR
        near = (pairs.blur_radius_px * error.exp()).clamp(RADII_PX[0], RADII_PX[-1])
        told = (chance[:, 0] < _RADIUS_SHARE) & pairs.blur_radius_px.isfinite()
        return torch.stack([torch.where(told, near, found[:, 0]), found[:, 1]], 1)

    def _renormalised(self, image: Tensor, target: Tensor, blur: Tensor, draws: Tensor) -> Pairs:
        """Give crops the scales and offsets that crops of whole images have.

        A whole image is normalised by its own percentiles; a crop of it can be dense or empty. So the scale lies
        anywhere between the crop's own and that of the image it came from, and beyond by `renormalise_jitter`. Where
        specimens absorb, what counts is how much: tiles come with their image's bright percentile at 1.
        """
        if self.config.absorbing:
            image, target = 1.0 - image, 1.0 - target
        flat = image.flatten(1)
        quantiles = torch.tensor((0.01, 0.998), device=image.device)
        parts = torch.split(flat, max(1, _MOST_FOR_QUANTILES // flat.shape[1]))
        low, high = torch.cat([torch.quantile(part, quantiles, dim=1) for part in parts], 1)
        span = (high - low).clamp_min(0.02)
        if self.augment:
            share = draws[:, 3]
            spread = torch.special.ndtri(draws[:, 4].clamp(0.02, 0.98)) * self.config.renormalise_jitter
            scale = torch.exp(share * span.log() + (1 - share) * span.clamp_min(1.0).log() + spread)
            offset = low * (0.4 + 0.6 * draws[:, 5]) + 0.04 * (draws[:, 6] - 0.5) * scale
        else:
            scale, offset = span.clamp_min(0.25), low
        scale, offset = scale.reshape(-1, 1, 1, 1), offset.reshape(-1, 1, 1, 1)
        return Pairs((image - offset) / scale, (target - offset) / scale, blur)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Mix three numbers into one of 62 bits (splitmix64's finaliser, Steele et al. 2014)."""
    state = 0
    for number in (seed, epoch, index):
        state = (state + (number & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 2


def _centre(image: Tensor, height: int, width: int) -> Tensor:
    y, x = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., y : y + height, x : x + width]
