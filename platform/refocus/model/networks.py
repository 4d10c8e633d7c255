"""Networks that bring a defocused image into focus, and say how far out and how sure they are.

None looks beyond its receptive field: no global pooling, and normalisation over channels alone, so that
overlapping tiles of one image agree. All start as the identity: an untrained network returns its input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from refocus.model.blocks import NafBlock, ResidualBlock
from refocus.model.blur_estimate import BLUR_PLANES, fitting_blur, with_blur
from refocus.model.deconvolution import STAGES, RichardsonLucy
from refocus.model.inverse_filters import GAIN, InverseFilters
from refocus.optics.ladder import PROFILES

Architecture = Literal["residual_unet", "nafnet", "deep_r"]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]

#: Natural logarithms of the smallest and largest Laplace scale, in normalised units. A free head explodes.
LOG_SCALE_LIMITS = (-7.0, 2.0)
#: The blur head's unit: its softplus is near 0.7 at the start, which is 5.5 px, a middling blur.
_BLUR_UNIT_PX = 8.0


class NetworkConfig(BaseModel):
    """Shape of a network: everything needed to build it before its weights are read.

    Parameters
    ----------
    architecture : {'residual_unet', 'nafnet', 'deep_r'}
        ``'residual_unet'``: 3 x 3 convolutions with skips, the fastest where matrix units exist (see docs/networks.md).
        ``'nafnet'``: Chen et al., "Simple Baselines for Image Restoration", ECCV 2022, without its pooled channel
        attention. ``'deep_r'``: the generator of Luo et al. 2021 as far as it is public.
    channels : {1, 3}
        1 for grey images and for each channel of a fluorescence image, 3 for RGB.
    widths : tuple of int
        Features at each level, finest first; the last is the bottom.
    encoder_blocks, decoder_blocks : tuple of int
        Blocks at each level above the bottom, finest first.
    middle_blocks : int
        Blocks at the bottom.
    unshuffle : {1, 2, 4}
        Side of the pixel squares that become features at the entrance.
    noise_levels : tuple of (floor, slope_px)
        Noise that each inverse filter (:mod:`refocus.model.inverse_filters`) for the image's own estimated blur reckons
        with; the U-Nets see what they would change beside the image, and the blur itself. Needs an `unshuffle` of 2.
    deconvolution : bool
        Whether the U-Nets see two stages of Richardson-Lucy (:mod:`refocus.model.deconvolution`), likewise.
    guided : bool
        Whether U-Nets of 3 channels restore each colour by the same weights, and see the mean of all beside it. Colours
        of one specimen have noise of their own and structures in common. A network of one channel can start it.

    Examples
    --------
    >>> NetworkConfig(widths=(8, 16), encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1).stride_px
    4
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = "residual_unet"
    channels: Literal[1, 3] = 1
    widths: tuple[PositiveInt, ...] = (32, 64, 128, 192)
    encoder_blocks: tuple[PositiveInt, ...] = (1, 1, 2)
    decoder_blocks: tuple[PositiveInt, ...] = (1, 1, 2)
    middle_blocks: PositiveInt = 3
    unshuffle: Literal[1, 2, 4] = 2
    noise_levels: tuple[tuple[PositiveFloat, PositiveFloat], ...] = ()
    deconvolution: bool = False
    guided: bool = False

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        levels = len(self.widths) - 1
        if levels < 1 or len(self.encoder_blocks) != levels or len(self.decoder_blocks) != levels:
            raise ValueError(
                f"widths names {len(self.widths)} levels, encoder_blocks {len(self.encoder_blocks)} and decoder_blocks "
                f"{len(self.decoder_blocks)}; both need one entry fewer than widths, and at least one."
            )
        if self.sees_blur and (self.unshuffle != 2 or self.architecture == "deep_r"):
            raise ValueError("what undoes the estimated blur enters U-Nets with an unshuffle of 2 alone, not this one.")
        if self.guided and (self.channels != 3 or self.architecture == "deep_r"):
            raise ValueError("guided are U-Nets of 3 channels alone: one channel has no other colours to learn from.")
        return self

    @property
    def sees_blur(self) -> bool:
        """Whether the image's own estimated blur is part of the input."""
        return bool(self.noise_levels) or self.deconvolution

    @property
    def trunk_channels(self) -> int:
        """Channels that pass through the trunk at once."""
        return 1 if self.guided else self.channels

    @property
    def proposals(self) -> int:
        """What undoes the blur of one channel, in so many versions."""
        return len(self.noise_levels) + STAGES * self.deconvolution

    @property
    def stride_px(self) -> int:
        """Pixels a side of one feature at the bottom; tiles must start at multiples of it to agree exactly."""
        return self.unshuffle * int(2 ** (len(self.widths) - 1))


class Prediction(NamedTuple):
    """What one forward pass says, in the units of its input.

    Attributes
    ----------
    image : Tensor, shape [B, C, H, W]
        In focus.
    log_scale : Tensor, shape [B, C, H, W]
        Natural logarithm of the Laplace scale of the error, within `LOG_SCALE_LIMITS`.
    blur_radius_px : Tensor, shape [B, 1, h, w]
        Geometric radius of the defocus, one value for each bottom feature.
    """

    image: Tensor
    log_scale: Tensor
    blur_radius_px: Tensor


class _Heads(nn.Module):
    """Three answers from one trunk. The image's last weights start at zero: residual to the input.

    Where the network has inverse filters, it also says at each place how much of each filter's change to apply: from
    the first step on there is something right to learn, long before the trunk can deblur by itself.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.unshuffle = config.unshuffle
        self.answers = 2 * config.trunk_channels * config.unshuffle**2
        proposals = (1 + config.guided) * config.proposals
        self.pixels = nn.Conv2d(config.widths[0], self.answers + proposals, 3, padding=1)
        nn.init.zeros_(self.pixels.weight)
        assert self.pixels.bias is not None
        nn.init.zeros_(self.pixels.bias)
        self.blur = nn.Sequential(nn.Conv2d(config.widths[-1], 64, 1), nn.ReLU(), nn.Conv2d(64, 1, 1))

    def forward(self, fine: Tensor, bottom: Tensor, padded: Tensor, changes: Sequence[Tensor] = ()) -> Prediction:
        """`changes`: one for each proposal, [B, C, H, W] or half of that a side."""
        # As precise as the weights, not autocast: rounded to 8 bits, shares of large changes make visible seams.
        with torch.autocast(fine.device.type, enabled=False):
            raw = self.pixels(fine.to(self.pixels.weight.dtype)).float()
        residual, raw_scale = F.pixel_shuffle(raw[:, : self.answers], self.unshuffle).chunk(2, 1)
        image = padded.float() + residual
        # One by one, by weighted sums: einsum would make a matrix product of five numbers for each pixel.
        for number, change in enumerate(changes, self.answers):
            share = F.interpolate(raw[:, number : number + 1], scale_factor=2.0, mode="nearest")
            if change.shape[-2:] != image.shape[-2:]:
                change = F.interpolate(change, scale_factor=2.0, mode="bilinear", align_corners=False)
            image = torch.addcmul(image, share, change)
        blur = _BLUR_UNIT_PX * F.softplus(self.blur(bottom).float())
        low, high = LOG_SCALE_LIMITS
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        log_scale = middle + half * torch.tanh(raw_scale / half)
        return Prediction(image, log_scale, blur)


class _UNet(nn.Module):
    """Encoder, bottom and decoder with additive skips, on a pixel-unshuffled image."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        block = NafBlock if config.architecture == "nafnet" else ResidualBlock
        widths = config.widths
        seen = config.unshuffle**2 * (1 + len(config.noise_levels)) + STAGES * config.deconvolution
        seen = (config.trunk_channels + config.guided) * seen + (BLUR_PLANES if config.sees_blur else 0)
        self.entrance = nn.Conv2d(seen, widths[0], 3, padding=1)
        self.filters = InverseFilters(config.noise_levels) if config.noise_levels else None
        self.deconvolution = RichardsonLucy() if config.deconvolution else None
        self.encoders = nn.ModuleList()
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.decoders = nn.ModuleList()
        for fine, coarse, before, after in zip(
            widths, widths[1:], config.encoder_blocks, config.decoder_blocks, strict=False
        ):
            self.encoders.append(nn.Sequential(*[block(fine) for _ in range(before)]))
            self.downs.append(nn.Conv2d(fine, coarse, 2, stride=2))
            self.ups.append(nn.Conv2d(coarse, 4 * fine, 1, bias=False))
            self.decoders.append(nn.Sequential(*[block(fine) for _ in range(after)]))
        self.middle = nn.Sequential(*[block(widths[-1]) for _ in range(config.middle_blocks)])
        self.heads = _Heads(config)

    def forward(self, given: Tensor, undone: tuple[Tensor, ...] = ()) -> Prediction:
        padded, blur = given[:, : self.config.channels], given[:, self.config.channels :]
        if not self.config.guided:
            return self._refocused(_Evidence(padded, undone or self.undone(padded, blur)), blur)
        if not self.training and bool((padded == padded[:, :1]).all()):
            # A grey image, repeated: one of them says it all.
            padded, undone = padded[:, :1], ()
        undone = undone or self.undone(padded, blur)
        half = len(undone) // 2
        own, mean = _Evidence(padded, undone[:half]), _Evidence(padded.mean(1, keepdim=True), undone[half:])
        # One after the other, so that colours take no more memory than grey.
        answers = [self._refocused(own.channel(number), blur, mean) for number in range(padded.shape[1])]
        image, log_scale, radius = (torch.cat(parts, 1) for parts in zip(*answers, strict=True))
        size = (-1, self.config.channels, -1, -1)
        return Prediction(image.expand(size), log_scale.expand(size), radius.mean(1, keepdim=True))

    def undone(self, image: Tensor, blur: Tensor) -> tuple[Tensor, ...]:
        """What undoing their blur would change in images, and where colours are guided in the mean of all."""
        own = self.evidence(image, blur).proposed
        return (*own, *self.evidence(image.mean(1, keepdim=True), blur).proposed) if self.config.guided else own

    def evidence(self, image: Tensor, blur: Tensor) -> _Evidence:
        """Images and what undoing their blur would change."""
        deconvolved = self.deconvolution(image, blur) if self.deconvolution is not None else None
        proposed = [deconvolved.changes] if deconvolved is not None else []
        if self.filters is not None:
            rungs = deconvolved.rungs if deconvolved is not None else None
            proposed.insert(0, self.filters(image, blur, rungs))
        return _Evidence(image, tuple(proposed))

    def _refocused(self, own: _Evidence, blur: Tensor, guide: _Evidence | None = None) -> Prediction:
        features = own.features(self.config.unshuffle)
        if self.config.sees_blur:
            # Where trained weights expect it: between the linear versions and those of Richardson-Lucy.
            features.insert(1 + bool(self.config.noise_levels), blur_features(blur[..., ::2, ::2]))
        changes = own.changes()
        if guide is not None:
            features += guide.features(self.config.unshuffle)
            changes += guide.changes()
        x = self.entrance(torch.cat(features, 1).contiguous(memory_format=torch.channels_last))
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        bottom = x = self.middle(x)
        for up, decoder, skip in zip(reversed(self.ups), reversed(self.decoders), reversed(skips), strict=True):
            # The first of two layouts stays, and accelerators do not shuffle into the one that convolutions ask for.
            x = decoder(skip + F.pixel_shuffle(up(x), 2))
        return self.heads(x, bottom, own.image, changes)


class _Evidence(NamedTuple):
    """Images [B, C, H, W], and what undoing their blur would change: versions for one channel lie side by side.

    The linear versions come at full size, those of Richardson-Lucy at half of it a side.
    """

    image: Tensor
    proposed: tuple[Tensor, ...]

    def channel(self, number: int) -> _Evidence:
        """One channel and what belongs to it."""
        versions = [part.shape[1] // self.image.shape[1] for part in self.proposed]
        own = [part[:, number * n : (number + 1) * n] for part, n in zip(self.proposed, versions, strict=True)]
        return _Evidence(self.image[:, number : number + 1], tuple(own))

    def features(self, unshuffle: int) -> list[Tensor]:
        """All of it at the size of a trunk's finest features."""
        wanted = self.image.shape[-1] // unshuffle
        parts = (self.image, *self.proposed)
        return [F.pixel_unshuffle(part, part.shape[-1] // wanted) for part in parts]

    def changes(self) -> list[Tensor]:
        """One for each version, [B, C, H, W] or half of that a side."""
        versions = [part.shape[1] // self.image.shape[1] for part in self.proposed]
        return [part[:, v::n] for part, n in zip(self.proposed, versions, strict=True) for v in range(n)]


def blur_features(blur: Tensor) -> Tensor:
    """Radius and sampling of [B, 2, h, w] brought to the size of other features."""
    samplings = torch.tensor([profile.sampling for profile in PROFILES], device=blur.device)
    sampling = samplings[blur[:, 1:].round().to(torch.int64)]
    return torch.cat([torch.log1p(blur[:, :1].float()) - 2.0, 4.0 * (sampling - 0.4)], 1)


class _DeepRLevel(nn.Module):
    """Convolutions whose sum with the (channel-padded) input leaves the level: Deep-R's residual block."""

    def __init__(self, given: int, wanted: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(given, wanted, 3, padding=1)
        self.second = nn.Conv2d(wanted, wanted, 3, padding=1)
        self.skip = nn.Conv2d(given, wanted, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.second(F.leaky_relu(self.first(x), 0.1)), 0.1)
        return y + self.skip(x)


class _DeepR(nn.Module):
    """Deep-R's generator: residual down and up blocks, average pooling, concatenated skips.

    Public are the U-Net shape, the residual blocks and the skips. Chosen here: widths, two convolutions a block,
    leaky rectifiers, bilinear enlargement, the residual to the input and the heads for scale and blur.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.downs = nn.ModuleList(
            _DeepRLevel(given, wanted)
            for given, wanted in zip((config.channels * config.unshuffle**2, *widths[:-2]), widths[:-1], strict=True)
        )
        self.bottom = _DeepRLevel(widths[-2], widths[-1])
        self.ups = nn.ModuleList(_DeepRLevel(coarse + fine, fine) for fine, coarse in pairwise(widths))
        self.heads = _Heads(config)

    def forward(self, padded: Tensor) -> Prediction:
        x = F.pixel_unshuffle(padded, self.config.unshuffle)
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        bottom = x = self.bottom(x)
        for up, skip in zip(reversed(self.ups), reversed(skips), strict=True):
            larger = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = up(torch.cat([larger, skip], 1))
        return self.heads(x, bottom, padded)


class RefocusNetwork(nn.Module):
    """Any of the architectures behind one door: accepts images of any size from one pixel up.

    Parameters
    ----------
    config : NetworkConfig
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk: nn.Module = _DeepR(config) if config.architecture == "deep_r" else _UNet(config)

    def forward(self, x: Tensor, undone: tuple[Tensor, ...] = ()) -> Prediction:
        """Bring normalised images into focus.

        Parameters
        ----------
        x : Tensor, float, shape [B, C, H, W] or [B, C + 2, H, W]
            Networks that see it take geometric blur radius and profile as two last planes
            (:meth:`refocus.model.blur_estimate.BlurEstimate.over`); where those are missing they are estimated from
            `x` itself, once for each image of the batch.
        undone : tuple of Tensor
            What :meth:`undone` said of `x` with its blur, or of more images at once; found here where not given.

        Returns
        -------
        Prediction
            `image` and `log_scale` float32 of the input's size; `blur_radius_px` of ceil(H / stride) x
            ceil(W / stride).
        """
        height, width = x.shape[-2:]
        if self.config.sees_blur and x.shape[1] == self.config.channels:
            x = with_blur(x, fitting_blur(x))
        padded = pad_to_multiple(x, self.config.stride_px)
        prediction: Prediction = self.trunk(padded, undone) if undone else self.trunk(padded)
        if (height, width) == prediction.image.shape[-2:]:
            return prediction
        return Prediction(
            prediction.image[..., :height, :width],
            prediction.log_scale[..., :height, :width],
            prediction.blur_radius_px,
        )

    @torch.no_grad()
    def undone(self, x: Tensor) -> tuple[Tensor, ...]:
        """What undoing the blur would change in images, for `forward`: no weight has a part in it.

        Rows belong to images, so that many can be made at once and seen in several batches.

        Parameters
        ----------
        x : Tensor, float, shape [B, C + 2, H, W]
            Normalised images and their blur.

        Returns
        -------
        tuple of Tensor
            With B rows each; none where the network sees no blur.
        """
        if not self.config.sees_blur:
            return ()
        trunk, image, blur = self._undoing(x)
        return trunk.undone(image, blur)

    def proposals(self, x: Tensor) -> list[Tensor]:
        """Return what undoing the blur makes of images by itself, of which the network chooses.

        Parameters
        ----------
        x : Tensor, float, shape [B, C + 2, H, W]
            Normalised images and their blur.

        Returns
        -------
        list of Tensor, float32, shape [B, C, H, W]
            One by each inverse filter, then the stages of Richardson-Lucy; none where the network sees no blur.
        """
        if not self.config.sees_blur:
            return []
        trunk, image, blur = self._undoing(x)
        image = image.float()
        changes = trunk.evidence(image, blur).changes()
        finer = [F.interpolate(change, image.shape[-2:], mode="bilinear", align_corners=False) for change in changes]
        return [(image + change / GAIN)[..., : x.shape[-2], : x.shape[-1]] for change in finer]

    def _undoing(self, x: Tensor) -> tuple[_UNet, Tensor, Tensor]:
        """What can undo a blur, and padded images and their blur for it."""
        assert isinstance(self.trunk, _UNet)
        given = pad_to_multiple(x, self.config.stride_px)
        return self.trunk, given[:, : self.config.channels], given[:, self.config.channels :]


def build_network(config: NetworkConfig) -> RefocusNetwork:
    """Build an untrained network, which returns its input as the image.

    Weights come from torch's global generator: seed it first where they must repeat.
    """
    return RefocusNetwork(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def guided_start(network: RefocusNetwork, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with which a guided network does to each colour what a network of one channel did, guide or not.

    Parameters
    ----------
    network : RefocusNetwork
        Guided.
    weights : mapping of str to Tensor
        Of a network that differs from it in `channels` and `guided` alone.
    """
    started = {}
    for name, wanted in network.state_dict().items():
        started[name] = torch.zeros_like(wanted)
        # What the guide adds comes last, among inputs as among outputs.
        started[name][tuple(slice(length) for length in weights[name].shape)] = weights[name]
    return started


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Mirror [B, C, H, W] at its lower and right rim until both sides are multiples.

    Images too small to be mirrored, down to one pixel, have their last row and column repeated.
    """
    below, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    if not below and not right:
        return x
    mirror = below < x.shape[-2] and right < x.shape[-1]
    return F.pad(x, (0, right, 0, below), mode="reflect" if mirror else "replicate")
