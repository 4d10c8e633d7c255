"""Richardson-Lucy deconvolution by the estimated blur, as a network's proposal.

Linear inverses know nothing of light being positive, which is worth 1 dB and more where blur is wide: dark surroundings
bound what may have been there. So a network sees two stages of W. H. Richardson (J. Opt. Soc. Am. 62, 55, 1972) and
L. B. Lucy (Astron. J. 79, 745, 1974) beside the linear answers. What lies outside the image counts as unknown (Bertero
and Boccacci, Astron. Astrophys. 437, 369, 2005); steps are accelerated by Nesterov's momentum, which needs no sums over
the image and so is the same in every tile. All happens on 2 x 2 means: a wide blur leaves nothing that those lose.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refocus.model.inverse_filters import GAIN, ladder_positions, rungs_of, scaled_spectrum
from refocus.optics.formation import mirrored
from refocus.optics.ladder import FREQUENCIES, PROFILES, RADII_PX, blur_ladder
from refocus.optics.psf import fast_fft_length

_BIN = 2
#: Narrower blurs are the linear filters' matter.
FIRST_RADIUS_PX = 2.5
#: Of the image's bright percentile. Divisions by less than this are divisions by noise.
_LEAST_LIGHT = 1e-3
#: Where less of a place's light would have reached the image, nothing is known about it.
_LEAST_SEEN = 1e-2


class RichardsonLucy(nn.Module):
    """Deconvolves each image by its own blur and shows the result after given steps.

    Parameters
    ----------
    steps : tuple of int
        Increasing; few keep noise low, many reach finer detail.
    """

    defocused: Tensor
    in_focus: Tensor

    def __init__(self, steps: tuple[int, ...]) -> None:
        super().__init__()
        self.steps = steps
        # Kept with the weights: what a network was trained on must not change under it.
        if torch.get_default_device().type == "meta":
            self.register_buffer("defocused", torch.empty(len(PROFILES), len(RADII_PX), FREQUENCIES))
            self.register_buffer("in_focus", torch.empty(len(PROFILES), FREQUENCIES))
        else:
            self.register_buffer("defocused", blur_ladder().defocused)
            self.register_buffer("in_focus", blur_ladder().in_focus)

    def forward(self, x: Tensor, blur: Tensor) -> Tensor:
        """Say what deconvolution would change.

        Parameters
        ----------
        x : Tensor, shape [B, C, H, W]
            Normalised: darkness near 0, H and W even.
        blur : Tensor, shape [B, 2, H, W]
            As :class:`refocus.model.inverse_filters.InverseFilters` takes it.

        Returns
        -------
        Tensor, float32, shape [B, C * steps, H / 2, W / 2]
            `GAIN` times the result less the 2 x 2 means; 0 where the blur is below `FIRST_RADIUS_PX`.
        """
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            rung = rungs_of(blur[:, 0, ::_BIN, ::_BIN].float())
            profile = blur[:, 1, 0, 0].round().to(torch.int64)
            lowest = rung.flatten(1).amin(1).floor().to(torch.int64)
            highest = rung.flatten(1).amax(1).ceil().to(torch.int64)
            plan = torch.stack([profile, lowest, highest], 1).tolist()
            means = F.avg_pool2d(x.float(), _BIN)
            return torch.stack([self._changes(means[b], rung[b], *plan[b]) for b in range(len(x))])

    def _changes(self, image: Tensor, rung: Tensor, profile: int, lowest: int, highest: int) -> Tensor:
        channels, height, width = image.shape
        change = image.new_zeros(channels, len(self.steps), height, width)
        for number in range(max(lowest, 0), highest + 1):
            if RADII_PX[number] < FIRST_RADIUS_PX:
                continue
            weight = (1.0 - (rung - number).abs()).clamp_min(0.0)
            stages = self._stages(image.clamp_min(0.0), profile, number)
            for stage, sharpened in enumerate(stages):
                change[:, stage].addcmul_(sharpened - image, weight, value=GAIN)
        return change.flatten(0, 1)

    def _stages(self, image: Tensor, profile: int, number: int) -> list[Tensor]:
        """Estimates [C, h, w] after each of `steps`, seen through the objective in focus."""
        height, width = image.shape[-2:]
        # Light comes from no further than the blur's radius and a few rings.
        reach = math.ceil(1.2 * RADII_PX[number] / _BIN) + 4
        size = (fast_fft_length(height + 2 * reach), fast_fft_length(width + 2 * reach))
        lower, share = ladder_positions(size, image.device, _BIN)

        def gains(table: Tensor) -> Tensor:
            return torch.lerp(table[lower], table[lower + 1], share)

        blurring, focusing = gains(self.defocused[profile, number]), gains(self.in_focus[profile])

        def through(light: Tensor, gain: Tensor) -> Tensor:
            return torch.fft.irfft2(scaled_spectrum(torch.fft.rfft2(light), gain), s=size)

        inside = (..., slice(reach, reach + height), slice(reach, reach + width))
        seen, known = image, image.new_zeros(1, *size)
        known[inside] = 1.0
        for axis, wanted in zip((-2, -1), size, strict=True):
            seen = seen.index_select(axis, mirrored(seen.shape[axis], wanted, reach, image.device))
        reaching = through(known, blurring).clamp_min(_LEAST_SEEN)
        data = seen * known
        found = ahead = seen.clamp_min(_LEAST_LIGHT)
        stages = []
        for step in range(1, self.steps[-1] + 1):
            ratio = data / through(ahead, blurring).clamp_min(_LEAST_LIGHT)
            better = ahead * through(ratio, blurring).clamp_min(0.0) / reaching
            momentum = (step - 1) / (step + 2)
            ahead = (better + momentum * (better - found)).clamp_min(0.0)
            found = better
            if step in self.steps:
                stages.append(through(found, focusing)[inside])
        return stages
