"""Richardson-Lucy deconvolution by the estimated blur, as a network's proposal.

Linear inverses know nothing of light being positive, which is worth 1 dB and more where blur is wide: dark surroundings
bound what may have been there. So a network sees two stages of W. H. Richardson (J. Opt. Soc. Am. 62, 55, 1972) and
L. B. Lucy (Astron. J. 79, 745, 1974) beside the linear answers. What lies outside the image counts as unknown (Bertero
and Boccacci, Astron. Astrophys. 437, 369, 2005); steps are accelerated by Nesterov's momentum, which needs no sums over
the image and so is the same in every tile. Wide blurs need many steps and leave little detail: most are made on 4 x 4
means and the last few on 2 x 2 means, which costs a third of the same picture on 2 x 2 means alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refocus.model.inverse_filters import (
    GAIN,
    Rungs,
    Surroundings,
    as_pairs,
    filter_reach_px,
    over_frequencies,
    rungs_in,
)
from refocus.optics.formation import mirrored_to
from refocus.optics.ladder import FREQUENCIES, PROFILES, RADII_PX, blur_ladder, widened
from refocus.optics.psf import fast_fft_length

#: Stages that a network sees: one that keeps noise low, one that reaches finer detail.
STAGES = 2
#: Narrower blurs are the linear filters' matter.
FIRST_RADIUS_PX = 2.5
_COARSE, _FINE = 4, 2
#: Side of the grid on which kernels are made; holds the widest one twice.
_KERNEL_PX = 256
#: From here on the first steps are coarse ones; narrower blurs leave detail that 4 x 4 means lose.
_COARSE_FROM_PX = 10.0
#: Of the image's bright percentile. Divisions by less than this are divisions by noise.
_LEAST_LIGHT = 1e-3
#: Where less of a place's light would have reached the image, nothing is known about it. Kernels made from frequencies
#: dip a thousandth below zero: from half of this on light beyond the rim ran away, and came in.
_LEAST_SEEN = 2e-2


class Schedule(NamedTuple):
    """Steps on coarse and on fine means until the smooth stage, and after it until the fine one."""

    smooth_coarse: int
    smooth_fine: int
    coarse: int
    fine: int


def schedule(radius_px: float) -> Schedule:
    """Return the steps that suit a blur: the wider, the more, and the more of them coarse; see docs/networks.md."""
    if radius_px < _COARSE_FROM_PX:
        return Schedule(0, 8, 0, 16)
    return Schedule(round(radius_px), 0, 2 * round(radius_px), round(170.0 / radius_px))


class Deconvolved(NamedTuple):
    """What Richardson-Lucy says of a batch.

    Attributes
    ----------
    changes : Tensor, float32, shape [B, C * STAGES, H / 2, W / 2]
        `GAIN` times the result less the 2 x 2 means; 0 where the blur is below `FIRST_RADIUS_PX`.
    surroundings : list of list of Surroundings or None
        For each image and each of its rungs: what a larger camera would have seen, for the linear filters. None below
        `FIRST_RADIUS_PX`.
    """

    changes: Tensor
    surroundings: list[list[Surroundings | None]]


class RichardsonLucy(nn.Module):
    """Deconvolves each image by its own blur and shows the result at two stages."""

    defocused: Tensor
    in_focus: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Kept with the weights: what a network was trained on must not change under it.
        if torch.get_default_device().type == "meta":
            self.register_buffer("defocused", torch.empty(len(PROFILES), len(RADII_PX), FREQUENCIES))
            self.register_buffer("in_focus", torch.empty(len(PROFILES), FREQUENCIES))
        else:
            self.register_buffer("defocused", blur_ladder().defocused)
            self.register_buffer("in_focus", blur_ladder().in_focus)

    def forward(self, x: Tensor, blur: Tensor) -> Deconvolved:
        """Say what deconvolution would change.

        Parameters
        ----------
        x : Tensor, shape [B, C, H, W]
            Normalised: darkness near 0, H and W multiples of 4.
        blur : Tensor, shape [B, 2, H, W]
            As :class:`refocus.model.inverse_filters.InverseFilters` takes it.
        """
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            # Of all pixels, as the filters read them: what surrounds an image is wanted for each of their rungs.
            plans = rungs_in(blur)
            radius_px = blur[:, 0, ::_FINE, ::_FINE]
            found = [self._changes(x[b].float(), radius_px[b], plans[b]) for b in range(len(x))]
            return Deconvolved(torch.stack([changes for changes, _ in found]), [around for _, around in found])

    def _changes(self, image: Tensor, radius_px: Tensor, plan: Rungs) -> tuple[Tensor, list[Surroundings | None]]:
        means = F.avg_pool2d(image, _FINE)
        change = means.new_zeros(len(means), STAGES, *means.shape[-2:])
        surroundings: list[Surroundings | None] = []
        for number, factor in plan.steps():
            if RADII_PX[number] < FIRST_RADIUS_PX:
                surroundings.append(None)
                continue
            weight = plan.weight(number, radius_px)
            blurring = widened(self.defocused[plan.profile, number], factor)
            *stages, around = self._stages(image, means, plan.profile, number, blurring)
            for stage, sharpening in enumerate(stages):
                change[:, stage] += sharpening * (GAIN * weight)
            surroundings.append(around)
        return change.flatten(0, 1), surroundings

    def _stages(
        self, image: Tensor, means: Tensor, profile: int, number: int, blurring: Tensor
    ) -> tuple[Tensor, Tensor, Surroundings]:
        """Changes of the 2 x 2 means [C, h, w] by the smooth and the fine stage, seen through the focused objective.

        And what a larger camera would have seen by the smooth stage.
        """
        steps = schedule(RADII_PX[number])
        radius_px, focusing = RADII_PX[number], self.in_focus[profile]
        if not steps.coarse:
            fine = Deconvolution(means, _FINE, radius_px, blurring)
            smooth = fine.shown(fine.advanced(steps.smooth_fine), focusing) - means
            around = fine.surroundings(filter_reach_px(radius_px))
        else:
            coarse_means = F.avg_pool2d(image, _COARSE)
            coarse = Deconvolution(coarse_means, _COARSE, radius_px, blurring)
            smooth = _finer(coarse.shown(coarse.advanced(steps.smooth_coarse), focusing) - coarse_means)
            around = coarse.surroundings(filter_reach_px(radius_px))
            fine = Deconvolution(means, _FINE, radius_px, blurring, start=_finer(coarse.advanced(steps.coarse)))
        return smooth, fine.shown(fine.advanced(steps.fine), focusing) - means, around


class Deconvolution:
    """Of the means of an image, with room around them for the light that came from outside; step by step.

    It starts from the image itself, mirrored beyond its rims, where no other light is given.

    Parameters
    ----------
    means : Tensor, float32, shape [C, h, w]
        Of squares of the image.
    side_px : int
        Of these squares.
    radius_px : float
        Geometric radius of the blur, or of the widest one.
    blurring : Tensor, shape [FREQUENCIES] or [K, FREQUENCIES]
        Radial transfer function, or those of K hypotheses that are followed at once, of one image [1, h, w] or of K:
        what they become is [K, h, w] then.
    start : Tensor, optional
        Light to start from, with the room around it.
    """

    def __init__(
        self,
        means: Tensor,
        side_px: int,
        radius_px: float,
        blurring: Tensor,
        *,
        start: Tensor | None = None,
    ) -> None:
        height, width = means.shape[-2:]
        doubled, reach = _doubled(side_px), reach_of(radius_px, side_px)
        rows, columns = (doubled * fast_fft_length(math.ceil((n + 2 * reach) / doubled)) for n in (height, width))
        self._side_px, self._reach, self._size = side_px, reach, (rows, columns)
        self._inside = (..., slice(reach, reach + height), slice(reach, reach + width))
        self._tables = blurring
        self._blurring = self._transfer(blurring, self._size)
        known = means.new_zeros(*blurring.shape[:-1] or (1,), *self._size)
        known[self._inside] = 1.0
        self._reaching = _through(known, self._blurring).clamp_min(_LEAST_SEEN)
        light = means.clamp_min(0.0)
        self._seen = light.new_zeros(len(light), *self._size)
        self._seen[self._inside] = light
        if start is None:
            start = mirrored_to(light, self._size, reach)
        self._found = self._ahead = start.clamp_min(_LEAST_LIGHT).expand(max(len(known), len(light)), -1, -1)
        self._step = 0

    def advanced(self, steps: int) -> Tensor:
        """Light after so many more steps."""
        for _ in range(steps):
            ratio = self._seen / _through(self._ahead, self._blurring).clamp_min(_LEAST_LIGHT)
            better = self._ahead * _through(ratio, self._blurring).clamp_min(0.0) / self._reaching
            momentum = self._step / (self._step + 3)
            self._ahead = (better + momentum * (better - self._found)).clamp_min(0.0)
            self._found = better
            self._step += 1
        return self._found

    def shown(self, light: Tensor, focusing: Tensor) -> Tensor:
        """What the objective shows of it in focus, without the room around."""
        return _through(light, self._transfer(focusing, self._size))[self._inside]

    def surroundings(self, reach_px: float) -> Surroundings:
        """What a larger camera would have seen of the light found so far, which is mirrored where it ends."""
        height, width = self._seen[self._inside].shape[-2:]
        light = self._found[..., : height + 2 * self._reach, : width + 2 * self._reach]
        reach = max(self._reach, math.ceil(reach_px / self._side_px))
        size = (fast_fft_length(height + 2 * reach), fast_fft_length(width + 2 * reach))
        wide = mirrored_to(light, size, reach - self._reach)
        return Surroundings(_through(wide, self._transfer(self._tables, size)), self._side_px, reach)

    def unexplained(self) -> Tensor:
        """Mean square of what is seen less what the light found so far would look like: [C] or [K]."""
        left = self._seen[self._inside] - _through(self._found, self._blurring)[self._inside]
        return left.square().mean((-2, -1))

    def _transfer(self, tables: Tensor, size: tuple[int, int]) -> Tensor:
        """Radial transfer functions over the frequencies of a field, `as_pairs`: of kernels that end at the reach.

        Read off the table for each size of field, they would differ by what lies between the table's columns; after
        many steps tiles of two sizes would show it.
        """
        grid = (_KERNEL_PX // self._side_px,) * 2
        reach, within = self._reach, (..., *(slice(2 * self._reach + 1),) * 2)
        kernel = torch.fft.irfft2(over_frequencies(tables, grid, self._side_px), s=grid)
        kernel = kernel.roll((reach, reach), (-2, -1))[within]
        placed = kernel.new_zeros(*tables.shape[:-1], *size)
        placed[within] = kernel / kernel.sum((-2, -1), keepdim=True)
        return as_pairs(torch.fft.rfft2(placed.roll((-reach, -reach), (-2, -1))).real)


def reach_of(radius_px: float, side_px: int) -> int:
    """From how many squares beyond an image light comes: no further than the blur's radius and a few rings."""
    doubled = _doubled(side_px)
    return doubled * math.ceil(1.2 * radius_px / (doubled * side_px) + 2)


def _doubled(side_px: int) -> int:
    """Fine fields are twice coarse ones."""
    return max(1, _COARSE // side_px)


def _through(light: Tensor, gain: Tensor) -> Tensor:
    """Light of a field by a transfer function `as_pairs`."""
    spectrum = torch.fft.rfft2(light)
    torch.view_as_real(spectrum).mul_(gain)
    return torch.fft.irfft2(spectrum, s=light.shape[-2:])


def _finer(means: Tensor) -> Tensor:
    return F.interpolate(means[None], scale_factor=_COARSE / _FINE, mode="bilinear", align_corners=False)[0]
