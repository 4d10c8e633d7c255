"""A gate that abstains: which tiles of an image are outside what the network was trained for.

It looks at the input alone, so it does not share the network's mistakes: how the tile's contrast is spread over scales
tells how far out of focus it is, up to blurs at which a network's own estimate has long saturated. A quadratic logistic
rule on those few numbers was fitted on specimens of the calibration split, in range and up to twice beyond it.
Three plainer checks stand beside it: saturation, no structure above the noise, and a spread over scales unlike that
of any tile it was fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage

from refocus.errors import InputError
from refocus.io.grid import TileGrid
from refocus.model.blanks import Blanks
from refocus.model.consistency import noise_of
from refocus.model.specimen import Specimen

Image = npt.NDArray[Any]
Reason = Literal["out_of_range", "unfamiliar", "no_structure", "saturated"]

#: Octaves of the pyramid: the coarsest detail has periods of about 100 px, as a blur of 50 px leaves.
_OCTAVES = 6
#: Below the first, noise cannot be told from structure. Below the second, the coarsest octaves that the rule looks at
#: have no room: of tiles of 64 px in focus nearly all were flagged, of 128 px none.
_LEAST_PX_OF_STRUCTURE, _LEAST_PX_OF_SCALES = 64, 128
#: Of a tile that is judged: of one with more, what would be judged is mostly made up.
_MOST_BLANK = 0.5
#: White noise of variance 1 leaves this much in an octave: sum of squares of (point - Gaussian of 1 px).
_NOISE_GAIN = 1.0 - 2.0 / (2 * np.pi) + 1.0 / (4 * np.pi)
#: Edges of the rings of the spectrum, in cycles per pixel.
_RINGS = np.geomspace(0.006, 0.5, 13)
FEATURES = (
    *(f"octave_{n}" for n in range(_OCTAVES)),
    "remainder",
    *(f"ring_{n}" for n in range(len(_RINGS) - 1)),
    "structure_over_noise",
)


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
        """
        planes = np.asarray(image)
        planes = planes[None] if planes.ndim == 2 else planes
        if planes.ndim != 3 or min(planes.shape) < 1:
            raise InputError(f"image has shape {image.shape}; expected [Y, X] or [C, Y, X].")
        specimen = Specimen.of(planes) if blanks is None else Specimen(planes, blanks)
        planes, blank = specimen.everywhere()
        extreme = planes.min() if absorbing else planes.max()
        level = float(extreme if saturation_level is None else saturation_level)
        verdicts = []
        for window in TileGrid.over(planes.shape[1], planes.shape[2], self.tile_px).windows():
            tile = planes[(slice(None), *window.slices)]
            clipped = tile <= level if absorbing else tile >= level
            place = window.y_px, window.x_px, window.height_px, window.width_px
            empty = blank[window.slices].mean() > _MOST_BLANK
            verdicts.append(TileVerdict(*place, ("no_structure",) if empty else self._reasons(tile, clipped)))
        return tuple(verdicts)

    def flagged_share(
        self,
        image: Image,
        *,
        saturation_level: float | None = None,
        absorbing: bool = False,
        blanks: Blanks | None = None,
    ) -> float:
        """Return the share of tiles on which the gate abstains; see :meth:`judge`."""
        verdicts = self.judge(image, saturation_level=saturation_level, absorbing=absorbing, blanks=blanks)
        return float(np.mean([v.flagged for v in verdicts]))

    def _reasons(self, tile: Image, clipped: Image) -> tuple[Reason, ...]:
        reasons: list[Reason] = []
        if float(clipped.any(0).mean()) >= self.saturated_share:
            reasons.append("saturated")
        grey = tile.mean(0, dtype=np.float64)
        if min(grey.shape) < _LEAST_PX_OF_STRUCTURE:
            return tuple(reasons)
        octaves = _Octaves.of(grey)
        if octaves.excess(grey.size) < self.least_structure:
            return (*reasons, "no_structure")
        if min(grey.shape) < _LEAST_PX_OF_SCALES:
            return tuple(reasons)
        standard = (_features(grey, octaves) - np.array(self.centre)) / np.array(self.spread)
        if float(expand(standard) @ np.array(self.weights)) > self.threshold:
            reasons.append("out_of_range")
        precision = np.array(self.precision).reshape(len(FEATURES), -1)
        if float(standard @ precision @ standard) > self.largest_distance:
            reasons.append("unfamiliar")
        return tuple(reasons)


def features_of(tile: Image) -> npt.NDArray[np.float64]:
    """How the contrast of a grey tile [Y, X] is spread over scales: log10 of each share, freed of white noise.

    Octaves of a pyramid see where contrast is strong, rings of the spectrum see the dark rings of the defocus. The
    last number is log10 of variance over noise variance. None depends on the unit of intensity.
    """
    tile = np.asarray(tile, np.float64)
    return _features(tile, _Octaves.of(tile))


def expand(standard: Image) -> Image:
    """Append all products of two features, and 1, to standardised features [..., F]."""
    i, j = np.triu_indices(standard.shape[-1])
    one = np.ones((*standard.shape[:-1], 1))
    return np.concatenate([standard, standard[..., i] * standard[..., j], one], axis=-1)


def _features(tile: Image, octaves: _Octaves) -> npt.NDArray[np.float64]:
    energy, noise = octaves.energy, octaves.noise
    total = max(float(energy.sum()), 1e-30)
    # A share below its noise by far cannot be known better than this.
    share = np.maximum(energy - noise, 0.02 * noise + 1e-6 * total) / total
    ratio = max(total - float(noise.sum()), 1e-3 * float(noise.sum()) + 1e-12 * total) / max(noise.sum(), 1e-9 * total)
    return np.concatenate([np.log10(share), _rings(tile, octaves.noise_variance), [np.log10(ratio)]])


@dataclass(frozen=True, slots=True)
class _Octaves:
    """Energy of each octave of a tile and of what remains, and what white noise contributes to each."""

    noise_variance: float
    energy: Image
    noise: Image

    @classmethod
    def of(cls, tile: Image) -> _Octaves:
        noise_variance = variance = noise_of(tile) ** 2
        energy, noise = [], []
        level = tile - tile.mean()
        for _ in range(_OCTAVES):
            detail = level - ndimage.gaussian_filter(level, 1.0, mode="reflect")
            energy.append(float(np.mean(detail**2)))
            noise.append(variance * _NOISE_GAIN)
            y, x = level.shape[0] // 2 * 2, level.shape[1] // 2 * 2
            level = level[:y, :x].reshape(y // 2, 2, x // 2, 2).mean((1, 3))
            variance /= 4.0
        energy.append(float(level.var()))
        noise.append(variance)
        return cls(noise_variance, np.array(energy), np.array(noise))

    def excess(self, pixels: int) -> float:
        """Largest excess of an octave over white noise, in standard deviations of what noise alone would give.

        The noise is known to about 2%, which bounds how faint a structure can be told from it.
        """
        independent = pixels / 4.0 ** np.arange(len(self.energy))
        uncertain = self.noise * np.sqrt(2.0 / np.maximum(independent, 1.0) + 0.02**2)
        return float(np.max((self.energy - self.noise) / np.maximum(uncertain, 1e-30)))


def _rings(tile: Image, noise: float) -> Image:
    """Log10 of the share of each ring of the power spectrum, in energy per octave of frequency."""
    taper, ring, inside, count = _ring_grid(*tile.shape)
    power = np.abs(np.fft.rfft2((tile - tile.mean()) * taper)) ** 2 / np.sum(taper**2)
    mean = np.bincount(ring, power[inside], minlength=len(_RINGS) - 1) / count
    signal = np.maximum(mean - noise, noise * np.maximum(0.01, 1.0 / np.sqrt(count)))
    share = signal * _RINGS[1:] * _RINGS[:-1]
    return np.log10(share / max(float(share.sum()), 1e-30) + 1e-6)


@lru_cache(maxsize=4)
def _ring_grid(height_px: int, width_px: int) -> tuple[Image, Image, Image, Image]:
    """Taper, and which ring each frequency of an ``rfft2`` belongs to: the same for all tiles of a shape."""
    taper = np.hanning(height_px + 2)[1:-1, None] * np.hanning(width_px + 2)[1:-1]
    frequency = np.hypot(np.fft.fftfreq(height_px)[:, None], np.fft.rfftfreq(width_px))
    ring = np.searchsorted(_RINGS, frequency) - 1
    inside = (ring >= 0) & (ring < len(_RINGS) - 1)
    count = np.maximum(np.bincount(ring[inside], minlength=len(_RINGS) - 1), 1)
    return taper, ring[inside], inside, count


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
        Rows of :func:`features_of`.
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
