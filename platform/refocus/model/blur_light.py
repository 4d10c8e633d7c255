"""How far out of focus, from what light can explain: light is positive, and too wide a blur leaves it no way.

Whatever an image shows, Richardson-Lucy finds light that explains it through a narrower blur than the true one, and
through the true one; through a wider one it cannot, since some of that light would have to be negative. So what stays
unexplained is level up to the true radius and steep beyond it, and at the corner lies the answer: on fields of 256 px
within one rung of the ladder from 20 px on and three from 10 px on, where rings of zeros
(:mod:`refocus.model.blur_spectrum`) are now and then confused with one another or with the specimen's own. Images
without dark ground have no corner, and then nothing is said for any radius. Soft specimens, and haze around them,
leave light more ways: their corners are weak and lie beyond the blur, the further the weaker. What can be said against
wide radii is how steep the way to them is: a nucleus of 40 px has a corner of its own at 40 px, far up a slope that
begins at the blur.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from refocus.model.deconvolution import Deconvolution, reach_of
from refocus.model.memory import most_at_once
from refocus.optics.ladder import PROFILES, RADII_PX, RUNG_RATIO, blur_ladder, widened

#: Smaller windows hold too little beside what came from outside.
SMALLEST_WINDOW_PX = 160


class _Look(NamedTuple):
    """Side of the squares whose means are explained, and after how many steps what stays is measured."""

    side_px: int
    steps: int


#: Corners are looked for from 10 px on (narrower blurs are the spectrum's matter), in another way from 20 px on; and
#: which change of slope is that of a sharp specimen there.
FIRST_RUNG, _FAR_FROM = 39, 51
_NEAR, _FAR = _Look(4, 12), _Look(8, 20)
_SHARP_NEAR, _SHARP_FAR = 1.0, 1.5
#: What counts for a rung: nats for each logarithm of the unexplained light that the slope changes by, and of those at
#: most so many. On 24 specimens of the calibration split through five objectives 15 to 30 nats did alike.
_NATS, _SHARPEST = 20.0, 2.0
#: No rung gains more in a window.
MOST_NATS = _NATS * _SHARPEST
#: How many rungs a corner lies beyond the blur for each logarithm by which it is weaker than a sharp specimen's, and at
#: most. Found on 40 training specimens, magnified up to four times and with haze added, and looked at on others.
_RUNGS_BEYOND, _FURTHEST_BEYOND = 1.2, 5.0
#: Rungs on both sides between which the corner is measured.
_SPAN = 3
#: Where it rises by more than this before a rung, the corner was passed.
_STEEP, _STEEP_COUNTS = 0.6, 2.0
#: The way up: its first rung, how far its rungs lie apart, and how they are looked at.
_WAY_FROM, _STRIDE, _WAY = 36, 3, _Look(4, 12)
#: A stride may rise by so much (noise alone makes 0.02 to 0.15 of most); strides in a row of which none rises by less
#: are steep. Nats against what lies beyond, for each logarithm by which the least of them is steeper. Found on 37
#: specimens of the calibration split and 16 images from elsewhere, through NA 0.75 and 0.45: less leaves more of them
#: far too wide, more takes deep ones for too narrow.
_LEVEL, _IN_A_ROW, _NATS_AGAINST = 0.2, 3, 300.0
#: Through steeper apertures the way is steep from its beginning.
_STEEP_BY_ITSELF = 0.9
#: Rungs that the spectrum finds less likely by more nats than this are not looked at.
_PLAUSIBLE_NATS = 30.0
#: Where the spectrum sees less than 4 px of blur, nothing is looked at: flat images have small corners anywhere.
_FIRST_BELIEVED = 24


def support(
    windows: Tensor, costs: Tensor, profiles: Tensor, *, doubted: Tensor | bool = True, absorbing: bool = False
) -> Tensor:
    """How much each rung of the ladder gains or loses by the light that could explain a window, in nats.

    Parameters
    ----------
    windows : Tensor, float32, shape [n, h, w]
        Normalised as networks see them: nothing where there is no specimen.
    costs : Tensor, float32, shape [n, radii]
        What the windows' spectra say of each rung (:func:`refocus.model.blur_spectrum.rung_costs`). In the processor's
        memory, as all but the windows: what is looked at follows from it.
    profiles : Tensor, int64, shape [n]
        Whose rungs these are.
    doubted : Tensor, bool, shape [n], or bool
        Whether the way to a rung can speak against it.
    absorbing : bool
        Specimens that take light away have weak corners at the blur itself, not beyond it.

    Returns
    -------
    Tensor, float32, shape [n, radii]
        0 everywhere for windows that are too small or say nothing.
    """
    if min(windows.shape[-2:]) < SMALLEST_WINDOW_PX:
        return torch.zeros_like(costs)
    number = torch.arange(len(RADII_PX))
    believed = costs.argmin(-1, keepdim=True) >= _FIRST_BELIEVED
    plausible = believed & (costs <= costs.amin(-1, keepdim=True) + _PLAUSIBLE_NATS)
    near = plausible & (number >= FIRST_RUNG) & (number < _FAR_FROM)
    far = plausible & (number >= _FAR_FROM)
    level = torch.tensor([profile.numerical_aperture < _STEEP_BY_ITSELF for profile in PROFILES])[profiles]
    way = _way(plausible) & (level & doubted)[:, None]
    with torch.no_grad(), torch.autocast(windows.device.type, enabled=False):
        looks = (_around(near), _NEAR), (_around(far), _FAR), (way, _WAY)
        # Waited for once, when all is on its way.
        left = torch.stack([_unexplained(windows, asked, profiles, look) for asked, look in looks]).cpu()
    corners = torch.where(near, _corners(left[0]), 0.0) + torch.where(far, _corners(left[1]), 0.0)
    gains = _NATS * corners.clamp(0.0, _SHARPEST)
    if not absorbing:
        gains = _before_weak_corners(gains)
    return gains - _NATS_AGAINST * _steepness(left[2], way.sum(-1, keepdim=True))


def _around(rungs: Tensor) -> Tensor:
    """Rungs [n, radii] and those between which their corners are measured: [n, radii + _SPAN]."""
    padded = F.pad(rungs, (_SPAN, 2 * _SPAN))
    return padded[:, : -2 * _SPAN] | padded[:, _SPAN:-_SPAN] | padded[:, 2 * _SPAN :]


def _corners(left: Tensor) -> Tensor:
    """Change of slope of the logarithm of what stays unexplained [n, radii + _SPAN], at each rung."""
    after = left[:, _SPAN:] - left[:, :-_SPAN]
    before = F.pad(after, (_SPAN, 0))[:, :-_SPAN]
    # Far beyond the corner the way is steep, and at first grows steeper.
    return after - before - _STEEP_COUNTS * (before - _STEEP).clamp_min(0.0)


def _before_weak_corners(gains: Tensor) -> Tensor:
    """Move what corners gain [n, radii] to narrower rungs, by as much as the sharpest of them is weak."""
    sharpest = gains.argmax(-1, keepdim=True)
    sharp = torch.where(sharpest < _FAR_FROM, _SHARP_NEAR, _SHARP_FAR)
    weaker = (sharp * _NATS / gains.gather(-1, sharpest)).log()
    beyond = (_RUNGS_BEYOND * weaker).clamp(0.0, _FURTHEST_BEYOND)
    return _read_at(gains, torch.arange(gains.shape[-1]) + beyond)


def _way(plausible: Tensor) -> Tensor:
    """Rungs on the way up to the last plausible one [n, radii + _SPAN]; none where it is too short to be steep."""
    number = torch.arange(plausible.shape[-1])
    last = (plausible * number).amax(-1, keepdim=True)
    passed = (number <= last) & (number >= _WAY_FROM) & ((number - _WAY_FROM) % _STRIDE == 0)
    return F.pad(passed & (passed.sum(-1, keepdim=True) > _IN_A_ROW), (0, _SPAN))


def _steepness(left: Tensor, passed: Tensor) -> Tensor:
    """By how much the way up to each rung has been steeper than `_LEVEL` in every stride: [n, radii].

    It counts a stride later: where the slope begins must stay level, since there the radius is found to a percent.
    `left` [n, radii + _SPAN] is what stays unexplained on the way, and `passed` [n, 1] how many rungs that has.
    """
    excess = (left[:, _WAY_FROM::_STRIDE].diff() - _LEVEL).clamp_min(0.0)
    least = F.pad(excess.unfold(-1, _IN_A_ROW, 1).amin(-1), (_IN_A_ROW, 0))
    strides = (torch.arange(len(RADII_PX)) - _WAY_FROM) / _STRIDE - 1.0
    return _read_at(least, torch.minimum(strides, passed - 1.0))


def _read_at(values: Tensor, place: Tensor) -> Tensor:
    """Values [n, m] at places [n, k] between their numbers, in straight lines; constant beyond the first and last."""
    place = place.clamp(0.0, values.shape[-1] - 1.0)
    lower, upper = place.floor().to(torch.int64), place.ceil().to(torch.int64)
    return torch.lerp(values.gather(-1, lower), values.gather(-1, upper), (place - lower).to(values))


def _unexplained(windows: Tensor, asked: Tensor, profiles: Tensor, look: _Look) -> Tensor:
    """Logarithm of what stays unexplained by light through each of the rungs that are asked for [n, radii + _SPAN]."""
    left = windows.new_zeros(asked.shape, dtype=torch.float32)
    means, ladder = F.avg_pool2d(windows.float(), look.side_px), _rungs_on(windows.device)
    number = torch.arange(asked.shape[-1])
    reaches = torch.tensor([reach_of(RUNG_RATIO**rung, look.side_px) for rung in number.tolist()])
    # A window's widest blur says from how far light comes. Those with as much room around them go together.
    room = reaches[(asked * number).amax(-1)]
    for reach in sorted(set(room[asked.any(-1)].tolist())):
        row, rung = (asked & (room == reach)[:, None]).nonzero().unbind(1)
        widest_px = RUNG_RATIO ** int(rung.max())
        at_once = most_at_once(math.prod(n + 2 * reach for n in means.shape[1:]), windows.device)
        hypotheses = torch.stack([row, profiles[row], rung]).to(windows.device, non_blocking=True)
        for at, profile, through in torch.split(hypotheses, at_once, 1):
            light = Deconvolution(means[at], look.side_px, [widest_px], ladder[profile, through])
            light.advanced(look.steps)
            left[at, through] = light.unexplained().clamp_min(torch.finfo(torch.float32).tiny).log()
    return left


@lru_cache(maxsize=4)
def _rungs_on(device: torch.device) -> Tensor:
    """Transfer functions of the ladder and, its last rung widened, beyond: [profiles, radii + _SPAN, FREQUENCIES]."""
    ladder = blur_ladder().defocused
    beyond = [widened(ladder[:, -1:], RUNG_RATIO**step) for step in range(1, _SPAN + 1)]
    return torch.cat([ladder, *beyond], 1).to(device)
