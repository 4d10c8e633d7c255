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

from refocus.model.deconvolution import Deconvolution
from refocus.optics.ladder import PROFILES, RADII_PX, RUNG_RATIO, blur_ladder, widened

#: Smaller windows hold too little beside what came from outside.
SMALLEST_WINDOW_PX = 160


class _Look(NamedTuple):
    """Side of the squares whose means are explained, and after how many steps what stays is measured."""

    side_px: int
    steps: int


#: Narrower blurs, below 10 px, are the spectrum's matter.
FIRST_RUNG = 39
#: From 10 px, and from 20 px on; and which change of slope is that of a sharp specimen there.
_LOOKS = ((range(FIRST_RUNG, 51), _Look(4, 12), 1.0), (range(51, len(RADII_PX)), _Look(8, 20), 1.5))
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


def support(window: Tensor, costs: Tensor, profile: int, *, doubted: bool = True, absorbing: bool = False) -> Tensor:
    """How much each rung of the ladder gains or loses by the light that could explain a window, in nats.

    Parameters
    ----------
    window : Tensor, float32, shape [h, w]
        Normalised as networks see it: nothing where there is no specimen.
    costs : Tensor, float32, shape [radii]
        What the window's spectrum says of each rung: :func:`refocus.model.blur_spectrum.rung_costs`.
    profile : int
        Whose rungs these are.
    doubted : bool
        Whether the way to a rung can speak against it.
    absorbing : bool
        Specimens that take light away have weak corners at the blur itself, not beyond it.

    Returns
    -------
    Tensor, float32, shape [radii]
        0 everywhere for windows that are too small or say nothing.
    """
    gains = torch.zeros_like(costs)
    if min(window.shape) < SMALLEST_WINDOW_PX or int(costs.argmin()) < _FIRST_BELIEVED:
        return gains
    plausible = (costs <= costs.min() + _PLAUSIBLE_NATS).nonzero().flatten().tolist()
    with torch.no_grad(), torch.autocast(window.device.type, enabled=False):
        for reach, look, _ in _LOOKS:
            rungs = [number for number in plausible if number in reach]
            if rungs:
                gains[rungs] = _NATS * _corners(window, rungs, profile, look).clamp(0.0, _SHARPEST)
        if not absorbing:
            gains = _before_weak_corners(gains)
        if doubted and plausible[-1] > _WAY_FROM and PROFILES[profile].numerical_aperture < _STEEP_BY_ITSELF:
            gains -= _NATS_AGAINST * _steepness(window, plausible[-1], profile)
    return gains


def _corners(window: Tensor, rungs: list[int], profile: int, look: _Look) -> Tensor:
    """Change of slope of the logarithm of what stays unexplained, at each rung."""
    looked_at = sorted({number + step for number in rungs for step in (-_SPAN, 0, _SPAN)})
    left = _unexplained(window, looked_at, profile, look)
    at = {number: left[place] for place, number in enumerate(looked_at)}
    before = torch.stack([at[number] - at[number - _SPAN] for number in rungs])
    after = torch.stack([at[number + _SPAN] - at[number] for number in rungs])
    # Far beyond the corner the way is steep, and at first grows steeper.
    return after - before - _STEEP_COUNTS * (before - _STEEP).clamp_min(0.0)


def _before_weak_corners(gains: Tensor) -> Tensor:
    """Move what corners gain [radii] to narrower rungs, by as much as the sharpest of them is weak."""
    if not gains.any():
        return gains
    sharpest = int(gains.argmax())
    sharp = next(change for reach, _, change in _LOOKS if sharpest in reach)
    weaker = math.log(sharp * _NATS / float(gains[sharpest]))
    beyond = min(max(_RUNGS_BEYOND * weaker, 0.0), _FURTHEST_BEYOND)
    return _read_at(gains, torch.arange(len(gains), device=gains.device) + beyond)


def _steepness(window: Tensor, last: int, profile: int) -> Tensor:
    """By how much the way up to each rung, up to `last`, has been steeper than `_LEVEL` in every stride: [radii].

    It counts a stride later: where the slope begins must stay level, since there the radius is found to a percent.
    """
    passed = list(range(_WAY_FROM, last + 1, _STRIDE))
    if len(passed) <= _IN_A_ROW:
        return torch.zeros(len(RADII_PX), device=window.device)
    excess = (_unexplained(window, passed, profile, _WAY).diff() - _LEVEL).clamp_min(0.0)
    least = F.pad(excess.unfold(0, _IN_A_ROW, 1).amin(-1), (_IN_A_ROW, 0))
    return _read_at(least, (torch.arange(len(RADII_PX), device=window.device) - _WAY_FROM) / _STRIDE - 1.0)


def _read_at(values: Tensor, place: Tensor) -> Tensor:
    """Values [n] at places between their numbers, in straight lines; constant beyond the first and last."""
    place = place.clamp(0.0, len(values) - 1.0)
    lower, upper = place.floor().to(torch.int64), place.ceil().to(torch.int64)
    return torch.lerp(values[lower], values[upper], (place - lower).to(values))


def _unexplained(window: Tensor, rungs: list[int], profile: int, look: _Look) -> Tensor:
    """Logarithm of what stays unexplained by light through each of ascending rungs."""
    ladder = _rungs_on(window.device)[profile]
    tables = torch.stack([_beyond(ladder, number) for number in rungs])
    widest = RADII_PX[0] * RUNG_RATIO ** rungs[-1]
    light = Deconvolution(F.avg_pool2d(window[None].float(), look.side_px), look.side_px, widest, tables)
    light.advanced(look.steps)
    return light.unexplained().clamp_min(torch.finfo(torch.float32).tiny).log()


@lru_cache(maxsize=4)
def _rungs_on(device: torch.device) -> Tensor:
    return blur_ladder().defocused.to(device)


def _beyond(ladder: Tensor, number: int) -> Tensor:
    """Transfer function of a rung; of those that the ladder has not, its last one widened."""
    last = len(ladder) - 1
    return ladder[number] if number <= last else widened(ladder[last], RUNG_RATIO ** (number - last))
