"""How far a network is followed: what share of its changes is applied, by the blur that it predicts.

Near focus a network removes what it takes for noise and sharpens what it takes for blur, and on specimens unlike those
it was trained on it takes too much for either. Shrinking its change towards nothing (James and Stein 1961) costs little
where it was right and saves much where it was wrong. How much is read off specimens that training has not seen: the
smallest share that they cannot tell from the best one, by one standard error (Breiman et al. 1984, "Classification and
Regression Trees").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from refocus.errors import InputError
from refocus.model.calibration import FEWEST_SPECIMENS
from refocus.model.networks import Prediction

Values = npt.NDArray[Any]
Share = Annotated[float, Field(gt=0, le=1)]

_SHARES = np.linspace(0.05, 1.0, 20)


class Restraint(BaseModel):
    """Share of a network's change that is applied, by predicted blur.

    Parameters
    ----------
    blur_radius_px : tuple of float
        Centres of the bands of predicted blur, increasing.
    share : tuple of float
        One a band, at most 1; linear between centres, constant beyond the first and last.
    specimens : int
        How many specimens it was fitted on; 0 where all of every change is applied.

    Examples
    --------
    >>> restraint = Restraint(blur_radius_px=(0.0, 10.0), share=(0.5, 1.0), specimens=20)
    >>> restraint.share_at(torch.tensor([0.0, 5.0, 40.0]))
    tensor([0.5000, 0.7500, 1.0000])
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    blur_radius_px: Annotated[tuple[float, ...], Field(min_length=1)] = (0.0,)
    share: Annotated[tuple[Share, ...], Field(min_length=1)] = (1.0,)
    specimens: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _knots_increase(self) -> Self:
        if len(self.blur_radius_px) != len(self.share):
            raise ValueError(f"{len(self.blur_radius_px)} bands but {len(self.share)} shares; expected one a band.")
        if any(b <= a for a, b in zip(self.blur_radius_px, self.blur_radius_px[1:], strict=False)):
            raise ValueError(f"blur_radius_px is {self.blur_radius_px}; expected increasing numbers.")
        return self

    def share_at(self, blur_radius_px: Tensor) -> Tensor:
        """Return the share at each predicted radius, in its shape."""
        knots, shares = (torch.tensor(v, device=blur_radius_px.device) for v in (self.blur_radius_px, self.share))
        if len(knots) == 1:
            return shares.expand(blur_radius_px.shape)
        upper = torch.bucketize(blur_radius_px, knots).clamp(1, len(knots) - 1)
        along = (blur_radius_px - knots[upper - 1]) / (knots[upper] - knots[upper - 1])
        return torch.lerp(shares[upper - 1], shares[upper], along.clamp(0.0, 1.0))

    def applied(self, prediction: Prediction, given: Tensor) -> Prediction:
        """Return the prediction with its image drawn back towards the given one [B, C (+ 2), H, W]."""
        if min(self.share) == 1.0:
            return prediction
        image, radius = prediction.image, prediction.blur_radius_px.float()
        height, width = image.shape[-2:]
        # The map covers whole strides, which may end beyond the image.
        strides = (-(-height // radius.shape[-2]), -(-width // radius.shape[-1]))
        size = [count * stride for count, stride in zip(radius.shape[-2:], strides, strict=True)]
        share = F.interpolate(self.share_at(radius), size=size, mode="bilinear", align_corners=False)
        return prediction._replace(image=torch.lerp(given[:, : image.shape[1]], image, share[..., :height, :width]))


@dataclass(frozen=True, slots=True)
class ChangeSample:
    """One image that a network changed as it liked, and what it should be.

    Attributes
    ----------
    specimen : str
    given, changed, truth : ndarray, one shape
        In any unit.
    blur_radius_px : float
        Predicted, median over the image.
    """

    specimen: str
    given: Values
    changed: Values
    truth: Values
    blur_radius_px: float

    def gains_db(self) -> Values:
        """Gain over the input for each of the shares that are tried."""
        error = self.given.astype(np.float64) - self.truth
        change = self.changed.astype(np.float64) - self.given
        before, together, after = ((a * b).mean() for a, b in ((error, error), (error, change), (change, change)))
        left = before + 2.0 * _SHARES * together + _SHARES**2 * after
        tiny = np.finfo(np.float64).tiny
        return 10.0 * np.log10(max(before, tiny) / np.maximum(left, tiny))


def fit_restraint(samples: Iterable[ChangeSample], *, bands: int = 12) -> Restraint:
    """Find the smallest share in each band of predicted blur that specimens cannot tell from the best one.

    Bands hold equal numbers of images; in each of them a specimen's images weigh as much as another's.

    Raises
    ------
    InputError
        If there are too few specimens to say anything about new ones.
    """
    specimens, radii, gains = [], [], []
    for sample in samples:
        specimens.append(sample.specimen)
        radii.append(sample.blur_radius_px)
        gains.append(sample.gains_db())
    known = sorted(set(specimens))
    if len(known) < FEWEST_SPECIMENS:
        raise InputError(
            f"{len(known)} specimens to restrain a network by; expected at least {FEWEST_SPECIMENS} to say anything "
            "about new ones."
        )
    owner, radius, gain = np.array(specimens), np.array(radii), np.stack(gains)
    edges = np.unique(np.quantile(radius, np.linspace(0, 1, bands + 1)))
    band = np.searchsorted(edges[1:-1], radius, side="right")
    share_at: dict[float, float] = {}
    for number in np.unique(band):
        inside = band == number
        by_specimen = np.stack([gain[inside & (owner == name)].mean(0) for name in np.unique(owner[inside])])
        share_at.setdefault(round(float(np.median(radius[inside])), 2), _smallest_as_good(by_specimen))
    return Restraint(blur_radius_px=tuple(share_at), share=tuple(share_at.values()), specimens=len(known))


def _smallest_as_good(gains_db: Values) -> float:
    """The smallest share whose gain [specimens, shares] is within a standard error of the best one's."""
    best = int(gains_db.mean(0).argmax())
    if len(gains_db) < 2:
        return round(float(_SHARES[best]), 3)
    behind = gains_db[:, [best]] - gains_db
    error = behind.std(0, ddof=1) / np.sqrt(len(behind))
    return round(float(_SHARES[np.argmax(behind.mean(0) <= error)]), 3)
