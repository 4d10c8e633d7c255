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
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refocus.model.inverse_filters import GAIN, as_pairs, filter_reach_px, over_frequencies
from refocus.model.memory import most_at_once
from refocus.model.rungs import Rung, Surroundings, rungs_in, tables_of
from refocus.optics.formation import mirrored_to
from refocus.optics.ladder import FREQUENCIES, PROFILES, RADII_PX, blur_ladder
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
#: Of an image's light, what it is compared with and steps are made of: as many fields are held at a time.
_FIELDS_HELD = 8


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
    rungs : list of Rung
        Of the images' blur, from `FIRST_RADIUS_PX` on with what a larger camera would have seen: for linear filters.
    """

    changes: Tensor
    rungs: list[Rung]


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
            coarse_means, means = (F.avg_pool2d(x.float(), side_px) for side_px in (_COARSE, _FINE))
            batch, channels, *size = means.shape
            changes = means.new_zeros(batch, channels, STAGES, *size)
            rungs = rungs_in(blur)
            found = [rung for rung in rungs if rung.radius_px < FIRST_RADIUS_PX]
            for part in _together([rung for rung in rungs if rung.radius_px >= FIRST_RADIUS_PX], means):
                coarse, fine = (torch.stack([of[rung.image] for rung in part]) for of in (coarse_means, means))
                stages, surroundings = self._stages(coarse, fine, part)
                for rung, stage, around in zip(part, stages, surroundings, strict=True):
                    changes[rung.image] += stage * (GAIN * rung.weight(blur[:, 0, ::_FINE, ::_FINE]))
                    found.append(rung._replace(around=around))
            return Deconvolved(changes.flatten(1, 2), found)

    def _stages(self, coarse_means: Tensor, means: Tensor, rungs: Sequence[Rung]) -> tuple[Tensor, list[Surroundings]]:
        """Changes of the 2 x 2 means [n, C, h, w], seen through the focused objective: [n, C, STAGES, h, w].

        And what a larger camera would have seen by the smooth stage.
        """
        radii, blurring = [rung.radius_px for rung in rungs], tables_of(rungs, self.defocused)[:, None]
        focusing = torch.stack([self.in_focus[rung.profile] for rung in rungs])[:, None]
        steps = [schedule(radius_px) for radius_px in radii]
        if not steps[0].coarse:
            fine = Deconvolution(means, _FINE, radii, blurring)
            smooth_light, light = fine.after([s.smooth_fine for s in steps], [s.smooth_fine + s.fine for s in steps])
            smooth = fine.shown(smooth_light, focusing) - means
            around = fine.surroundings(smooth_light)
        else:
            coarse = Deconvolution(coarse_means, _COARSE, radii, blurring)
            smooth_light, light = coarse.after(
                [s.smooth_coarse for s in steps], [s.smooth_coarse + s.coarse for s in steps]
            )
            smooth = _finer(coarse.shown(smooth_light, focusing) - coarse_means)
            around = coarse.surroundings(smooth_light)
            fine = Deconvolution(means, _FINE, radii, blurring, start=_finer(light))
            (light,) = fine.after([s.fine for s in steps])
        return torch.stack([smooth, fine.shown(light, focusing) - means], 2), around


def _together(rungs: Sequence[Rung], means: Tensor) -> Iterator[list[Rung]]:
    """Those that are followed together, of images with 2 x 2 means [B, C, h, w].

    All begin on coarse or all on fine means; neighbours need much the same room and number of steps.
    """
    widest_first = sorted(rungs, key=lambda rung: rung.number, reverse=True)
    for _, kind in groupby(widest_first, key=lambda rung: schedule(rung.radius_px).coarse > 0):
        alike = list(kind)
        room = 2 * reach_of(alike[0].radius_px, _FINE)
        field = means.shape[1] * math.prod(n + room for n in means.shape[-2:])
        at_once = most_at_once(_FIELDS_HELD * field, means.device)
        yield from (alike[first : first + at_once] for first in range(0, len(alike), at_once))


class Deconvolution:
    """Of the means of images, with room around them for the light that came from outside; step by step.

    It starts from the images themselves, mirrored beyond their rims, where no other light is given.

    Parameters
    ----------
    means : Tensor, float32, shape [..., h, w]
        Of squares of the images.
    side_px : int
        Of these squares.
    radii_px : sequence of float
        Geometric radius of the blur, or of the widest one; or of each image along the first axis.
    blurring : Tensor, shape [..., FREQUENCIES]
        Radial transfer functions. Leading axes of both are broadcast: channels share a blur, hypotheses an image.
    start : Tensor, optional
        Light to start from, with the room around it.
    """

    def __init__(
        self,
        means: Tensor,
        side_px: int,
        radii_px: Sequence[float],
        blurring: Tensor,
        *,
        start: Tensor | None = None,
    ) -> None:
        self._side_px, self._radii_px = side_px, radii_px
        doubled, reach = _doubled(side_px), reach_of(max(radii_px), side_px)
        height, width = means.shape[-2:]
        rows, columns = (doubled * fast_fft_length(math.ceil((n + 2 * reach) / doubled)) for n in (height, width))
        self._reach, self._size = reach, (rows, columns)
        self._inside = (..., slice(reach, reach + height), slice(reach, reach + width))
        self._kernels = self._ended(blurring)
        self._blurring = _over(self._kernels, self._size)
        known = means.new_zeros(*blurring.shape[:-1], *self._size)
        known[self._inside] = 1.0
        self._reaching = _through(known, self._blurring).clamp_min(_LEAST_SEEN)
        light = means.clamp_min(0.0)
        self._seen = light.new_zeros(*light.shape[:-2], *self._size)
        self._seen[self._inside] = light
        if start is None:
            start = mirrored_to(light, self._size, (reach, reach))
        start, _ = torch.broadcast_tensors(start.clamp_min(_LEAST_LIGHT), known)  # type: ignore[no-untyped-call]
        self._found = self._ahead = start
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

    def after(self, *stages: Sequence[int]) -> list[Tensor]:
        """Light at some stages: of each image along the first axis, after so many steps of its own from the start."""
        lights = [self._found.new_empty(self._found.shape) for _ in stages]
        for made in sorted({steps for stage in stages for steps in stage}):
            found = self.advanced(made - self._step)
            for light, stage in zip(lights, stages, strict=True):
                for image, steps in enumerate(stage):
                    if steps == made:
                        light[image] = found[image]
        return lights

    def shown(self, light: Tensor, focusing: Tensor) -> Tensor:
        """What the objective shows of it in focus, without the room around."""
        return _through(light, _over(self._ended(focusing), self._size))[self._inside]

    def surroundings(self, light: Tensor) -> list[Surroundings]:
        """What a larger camera would have seen of light, which is mirrored where it ends; for each image."""
        height, width = self._seen[self._inside].shape[-2:]
        found: list[Surroundings] = []
        # Images of one radius see equally far.
        for radius_px, alike in groupby(self._radii_px):
            at = slice(len(found), len(found) + len(list(alike)))
            own = reach_of(radius_px, self._side_px)
            reach = max(own, math.ceil(filter_reach_px(radius_px) / self._side_px))
            size = (fast_fft_length(height + 2 * reach), fast_fft_length(width + 2 * reach))
            first = self._reach - own
            ended = light[at, ..., first : first + height + 2 * own, first : first + width + 2 * own]
            expected = _through(mirrored_to(ended, size, (reach - own,) * 2), _over(self._kernels[at], size))
            found += [Surroundings(of_one, self._side_px, reach) for of_one in expected]
        return found

    def unexplained(self) -> Tensor:
        """Mean square of what is seen less what the light found so far would look like: [...]."""
        left = self._seen[self._inside] - _through(self._found, self._blurring)[self._inside]
        return left.square().mean((-2, -1))

    def _ended(self, tables: Tensor) -> Tensor:
        """Kernels of radial transfer functions [..., FREQUENCIES], each ended at its image's reach: of equal size.

        Read off the tables for each size of field, transfer functions would differ by what lies between the tables'
        columns; after many steps tiles of two sizes would show it.
        """
        grid = (_KERNEL_PX // self._side_px,) * 2
        kernels = torch.fft.irfft2(over_frequencies(tables, grid, self._side_px), s=grid)
        kernels = kernels.roll((self._reach,) * 2, (-2, -1))[..., *(slice(2 * self._reach + 1),) * 2]
        reaches = torch.tensor([reach_of(radius_px, self._side_px) for radius_px in self._radii_px])
        within = torch.arange(-self._reach, self._reach + 1).abs() <= reaches.view(-1, *[1] * (tables.ndim - 1))
        within = (within[..., None, :] & within[..., None]).to(kernels.device, non_blocking=True)
        kernels *= within
        return kernels / kernels.sum((-2, -1), keepdim=True)


def reach_of(radius_px: float, side_px: int) -> int:
    """From how many squares beyond an image light comes: no further than the blur's radius and a few rings."""
    doubled = _doubled(side_px)
    return doubled * math.ceil(1.2 * radius_px / (doubled * side_px) + 2)


def _doubled(side_px: int) -> int:
    """Fine fields are twice coarse ones."""
    return max(1, _COARSE // side_px)


def _over(kernels: Tensor, size: tuple[int, int]) -> Tensor:
    """Transfer functions, `as_pairs`, of kernels [..., n, n] about their middle, over the frequencies of a field."""
    side = kernels.shape[-1]
    placed = kernels.new_zeros(*kernels.shape[:-2], *size)
    placed[..., :side, :side] = kernels
    return as_pairs(torch.fft.rfft2(placed.roll((-(side // 2),) * 2, (-2, -1))).real)


def _through(light: Tensor, gain: Tensor) -> Tensor:
    """Light of a field by a transfer function `as_pairs`."""
    spectrum = torch.fft.rfft2(light)
    torch.view_as_real(spectrum).mul_(gain)
    return torch.fft.irfft2(spectrum, s=light.shape[-2:])


def _finer(means: Tensor) -> Tensor:
    return F.interpolate(means, scale_factor=_COARSE / _FINE, mode="bilinear", align_corners=False)
