"""A gate that abstains: which tiles of an image are outside what the network was trained for.

It looks at the input alone, so it does not share the network's mistakes: how the tile's contrast is spread over scales
tells how far out of focus it is, up to blurs at which a network's own estimate has long saturated. A quadratic logistic
rule on those few numbers was fitted on specimens of the calibration split, in range and up to twice beyond it.
Three plainer checks stand beside it: saturation, no structure above the noise, and a spread over scales unlike that
of any tile it was fitted on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from refocus.errors import InputError
from refocus.io.grid import TileGrid
from refocus.model.blanks import Blanks
from refocus.model.contrast import FEATURES, Contrast
from refocus.model.memory import most_at_once
from refocus.model.specimen import Specimen

Image = npt.NDArray[Any]
Reason = Literal["out_of_range", "unfamiliar", "no_structure", "saturated"]

#: Below the first, noise cannot be told from structure. Below the second, the coarsest octaves that the rule looks at
#: have no room: of tiles of 64 px in focus nearly all were flagged, of 128 px none.
_LEAST_PX_OF_STRUCTURE, _LEAST_PX_OF_SCALES = 64, 128
#: Of a tile that is judged: of one with more, what would be judged is mostly made up.
_MOST_BLANK = 0.5


@dataclass(frozen=True, slots=True)
class TileVerdict:
    """What the gate says about one tile.

    Attributes
    ----------
    y_px, x_px, height_px, width_px : int
    reasons : tuple of str
        Why it abstains; empty where the tile is in range.
    """

    y_px: int
    x_px: int
    height_px: int
    width_px: int
    reasons: tuple[Reason, ...]

    @property
    def flagged(self) -> bool:
        """True where the gate abstains."""
        return bool(self.reasons)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.y_px, self.y_px + self.height_px), slice(self.x_px, self.x_px + self.width_px)


class RangeGate(BaseModel):
    """The fitted rule and its thresholds.

    Parameters
    ----------
    largest_blur_px : float
        End of the range that it tells from what lies beyond.
    centre, spread : tuple of float
        Of each feature over the tiles it was fitted on.
    weights : tuple of float
        Of the standardised features, their products, and 1; see :func:`expand`.
    threshold : float
        Score above which a tile is out of range.
    precision : tuple of float
        Inverse covariance of the standardised features, row by row.
    largest_distance : float
        Squared Mahalanobis distance above which a tile is unfamiliar.
    tile_px : int
        Side of the tiles that are judged.
    saturated_share : float
        Share of pixels at the level that ends the range from which a tile is saturated.
    least_structure : float
        Excess of variance over noise, in units of its own uncertainty, below which there is nothing to restore.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    largest_blur_px: Annotated[float, Field(gt=0)]
    centre: tuple[float, ...]
    spread: tuple[Annotated[float, Field(gt=0)], ...]
    weights: tuple[float, ...]
    threshold: float
    precision: tuple[float, ...]
    largest_distance: Annotated[float, Field(gt=0)]
    tile_px: Annotated[int, Field(ge=_LEAST_PX_OF_SCALES)] = 256
    saturated_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    least_structure: Annotated[float, Field(ge=0)] = 6.0

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        n = len(FEATURES)
        wanted = {"centre": n, "spread": n, "weights": n + n * (n + 1) // 2 + 1, "precision": n * n}
        for name, size in wanted.items():
            if len(getattr(self, name)) != size:
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers; expected {size}.")
        return self

    @classmethod
    def shipped(cls) -> RangeGate:
        """Return the gate that ships with Refocus; how it was fitted and what it flags is in docs/evaluation.md."""
        return cls.model_validate_json((Path(__file__).parent / "gate.json").read_bytes())

    def judge(
        self,
        image: Image,
        *,
        saturation_level: float | None = None,
        absorbing: bool = False,
        blanks: Blanks | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[TileVerdict, ...]:
        """Judge an image tile by tile; the last row and column of tiles are moved inwards.

        Parameters
        ----------
        image : ndarray, shape [Y, X] or [C, Y, X]
        saturation_level : float, optional
            The level at which the camera clips what the specimen shows: its top, or where the specimen absorbs, its
            black. Where unknown, the image's extreme is taken for it if a plateau of pixels is there.
        absorbing : bool
            The specimen takes light away: a white plateau is empty ground, and saturation is looked for in the dark.
        blanks : Blanks, optional
            Of the image, where they are known, as a `refocus.model.restore.Restoration` knows them.
        device : torch.device or str
            Where tiles are measured.
        """
        planes = np.asarray(image)
        planes = planes[None] if planes.ndim == 2 else planes
        if planes.ndim != 3 or min(planes.shape) < 1:
            raise InputError(f"image has shape {image.shape}; expected [Y, X] or [C, Y, X].")
        specimen = Specimen.of(planes) if blanks is None else Specimen(planes, blanks)
        planes, blank = specimen.everywhere()
        extreme = planes.min() if absorbing else planes.max()
        level = float(extreme if saturation_level is None else saturation_level)
        windows = list(TileGrid.over(planes.shape[1], planes.shape[2], self.tile_px).windows())
        device = torch.device(device)
        at_once = most_at_once(windows[0].height_px * windows[0].width_px, device)
        verdicts = []
        for some in (windows[first : first + at_once] for first in range(0, len(windows), at_once)):
            tiles = [planes[(slice(None), *window.slices)] for window in some]
            unfit = self._unfit(tiles, device)
            for window, tile, beyond in zip(some, tiles, unfit, strict=True):
                place = window.y_px, window.x_px, window.height_px, window.width_px
                clipped = tile <= level if absorbing else tile >= level
                saturated = float(clipped.any(0).mean()) >= self.saturated_share
                empty = blank[window.slices].mean() > _MOST_BLANK
                known: tuple[Reason, ...] = ("saturated",) if saturated else ()
                verdicts.append(TileVerdict(*place, ("no_structure",) if empty else (*known, *beyond)))
        return tuple(verdicts)

    def _unfit(self, tiles: Sequence[Image], device: torch.device) -> list[tuple[Reason, ...]]:
        """What speaks against tiles [C, Y, X] of one size by how their contrast is spread over scales."""
        size = min(tiles[0].shape[1:])
        if size < _LEAST_PX_OF_STRUCTURE:
            return [()] * len(tiles)
        grey = np.stack([t[0] if len(t) == 1 else t.mean(0, dtype=np.float64) for t in tiles])
        contrast = Contrast.of(grey, device)
        nothing = contrast.excess() < self.least_structure
        if size < _LEAST_PX_OF_SCALES:
            return [("no_structure",) if none else () for none in nothing]
        standard = (contrast.features() - np.array(self.centre)) / np.array(self.spread)
        precision = np.array(self.precision).reshape(len(FEATURES), -1)
        far = expand(standard) @ np.array(self.weights) > self.threshold
        strange = np.einsum("ni,ij,nj->n", standard, precision, standard) > self.largest_distance
        found: list[tuple[Reason, ...]] = []
        for no_structure, out_of_range, unfamiliar in zip(nothing, far, strange, strict=True):
            reasons: list[Reason] = ["out_of_range"] if out_of_range else []
            reasons += ["unfamiliar"] if unfamiliar else []
            found.append(("no_structure",) if no_structure else tuple(reasons))
        return found


def flagged_share(verdicts: Iterable[TileVerdict]) -> float:
    """Share of the tiles of an image on which a gate abstains."""
    return float(np.mean([verdict.flagged for verdict in verdicts]))


def expand(standard: Image) -> Image:
    """Append all products of two features, and 1, to standardised features [..., F]."""
    i, j = np.triu_indices(standard.shape[-1])
    one = np.ones((*standard.shape[:-1], 1))
    return np.concatenate([standard, standard[..., i] * standard[..., j], one], axis=-1)


def fit_gate(
    in_range: Image,
    beyond: Image,
    *,
    largest_blur_px: float,
    false_alarms: float = 0.05,
    unfamiliar: float = 0.005,
    tile_px: int = 256,
) -> RangeGate:
    """Fit the rule to tiles in range and beyond it, given by their features.

    Logistic regression with a small ridge on the quadratic features, classes weighted alike; the threshold lets
    `1 - false_alarms` of the tiles in range pass, and `1 - unfamiliar` of all tiles are familiar.

    Parameters
    ----------
    in_range, beyond : ndarray, shape [N, F]
        Rows of :meth:`refocus.model.contrast.Contrast.features`.
    largest_blur_px : float
        Where the range ends.
    false_alarms : float
        Share of tiles in range that may be flagged as beyond it.
    unfamiliar : float
        Share of all tiles that may be flagged as unlike the others.
    tile_px : int

    Raises
    ------
    InputError
        If either class has fewer tiles than the rule has weights.
    """
    least = len(FEATURES) * (len(FEATURES) + 3) // 2 + 1
    if min(len(in_range), len(beyond)) < least:
        raise InputError(f"{len(in_range)} tiles in range and {len(beyond)} beyond; expected at least {least} of each.")
    features = np.concatenate([in_range, beyond])
    label = np.arange(len(features)) >= len(in_range)
    centre, spread = features.mean(0), features.std(0) + 1e-9
    standard = (features - centre) / spread
    expanded = expand(standard)
    weights = _logistic(expanded, label)
    precision = np.linalg.inv(np.cov(standard.T) + 1e-3 * np.eye(len(FEATURES)))
    distance = np.einsum("ni,ij,nj->n", standard, precision, standard)
    return RangeGate(
        largest_blur_px=largest_blur_px,
        centre=_rounded(centre),
        spread=_rounded(spread),
        weights=_rounded(weights),
        threshold=round(float(np.quantile(expanded[~label] @ weights, 1 - false_alarms)), 5),
        precision=_rounded(precision.ravel()),
        largest_distance=round(float(np.quantile(distance, 1 - unfamiliar)) * 1.5, 4),
        tile_px=tile_px,
    )


def _logistic(x: Image, label: Image, *, ridge: float = 1e-3, steps: int = 60) -> Image:
    """Weights of a balanced, ridge-penalised logistic regression, by Newton's method."""
    weight = np.where(label, 0.5 / label.mean(), 0.5 / (1 - label.mean())) / len(label)
    penalty = np.full(x.shape[1], 2 * ridge)
    penalty[-1] = 1e-9
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -40, 40)))
        gradient = x.T @ (weight * (p - label)) + penalty * w
        curvature = (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        w = w - step * min(1.0, 5.0 / (np.linalg.norm(step) + 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return w


def _rounded(values: Image) -> tuple[float, ...]:
    return tuple(float(f"{v:.7g}") for v in values)
