"""Which rungs of the ladder of blurs each image of a batch needs, and what belongs to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from refocus.optics.ladder import RADII_PX, RUNG_RATIO, RUNG_SHARES, widened


class Surroundings(NamedTuple):
    """What is expected of an image and beyond its rims, as means of squares: a field whose ends meet.

    Attributes
    ----------
    expected : Tensor, float32, shape [C, rows, columns]
    side_px : int
        Of the squares.
    reach : int
        So many of them lie before the image.
    """

    expected: Tensor
    side_px: int
    reach: int


class Rung(NamedTuple):
    """A rung that one image of a batch needs: its only one where the blur is even.

    Attributes
    ----------
    image : int
        In the batch.
    profile, number : int
        Of the ladder.
    factor : float
        How many times as wide as the rung's the blur is.
    share : float or None
        How much the rung counts; None where the blur is uneven, and that differs from pixel to pixel.
    around : Surroundings or None
        What stands beyond the image's rims, as seen through this rung, where that is known.
    """

    image: int
    profile: int
    number: int
    factor: float
    share: float | None
    around: Surroundings | None = None

    @property
    def radius_px(self) -> float:
        """Of the rung, not of the blur."""
        return RADII_PX[self.number]

    def weight(self, radius_px: Tensor) -> Tensor | float:
        """How much it counts at each pixel of its image, by the radii [B, h, w] of the batch: [h, w], or one number."""
        if self.share is not None:
            return self.share
        return (1.0 - (rungs_of(radius_px[self.image].float()) - self.number).abs()).clamp_min(0.0)


def rungs_in(blur: Tensor) -> list[Rung]:
    """Read what images need off their blur [B, 2, H, W]: the only look at an accelerator's memory, once a batch.

    Between two rungs an even blur gets the nearer one's, widened, and an uneven one both; below the first, less of it.
    """
    radii = blur[:, 0].float().flatten(1)
    ends = rungs_of(torch.stack([radii.amin(1), radii.amax(1)], 1))
    rungs: list[Rung] = []
    for image, row in enumerate(torch.cat([blur[:, 1:, 0, 0].float().round(), ends], 1).cpu().tolist()):
        profile, (lowest, highest) = int(row[0]), row[1:]
        if lowest == highest:
            place = max(lowest, 0.0)
            factor = RUNG_RATIO ** (place - round(place))
            rungs.append(Rung(image, profile, round(place), factor, share=min(1.0, 1.0 + lowest)))
        else:
            numbers = range(max(math.floor(lowest), 0), math.ceil(highest) + 1)
            rungs += [Rung(image, profile, number, 1.0, share=None) for number in numbers]
    return rungs


def rungs_of(radius_px: Tensor) -> Tensor:
    """Position on the ladder; from -1, no filter, at 0 px in a straight line to 0 at the first rung."""
    climbed = torch.log(radius_px.clamp_min(RADII_PX[0]) / RADII_PX[0]) / math.log(RUNG_RATIO)
    # A radius that is a rung must not ask for the next rung's filters, too, because of the last bit.
    climbed = (climbed * RUNG_SHARES).round() / RUNG_SHARES
    return torch.where(radius_px < RADII_PX[0], radius_px / RADII_PX[0] - 1.0, climbed).clamp(max=len(RADII_PX) - 1)


def tables_of(rungs: Sequence[Rung], tables: Tensor) -> Tensor:
    """Transfer functions [n, ..., FREQUENCIES] of blurs, off the ladder's [profiles, radii, ..., FREQUENCIES]."""
    places = torch.tensor([(rung.profile, rung.number) for rung in rungs]).to(tables.device, non_blocking=True)
    factors = torch.tensor([rung.factor for rung in rungs]).to(tables.device, non_blocking=True)
    profile, number = places.unbind(1)
    return widened(tables[profile, number], factors.view(-1, *[1] * (tables.ndim - 2)))
