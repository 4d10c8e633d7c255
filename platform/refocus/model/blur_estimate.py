"""How far out of focus an image is, window by window, without knowledge of the optics.

Two things tell: the spectrum, where blur leaves rings of zeros (:mod:`refocus.model.blur_spectrum`), and light, which
cannot be negative (:mod:`refocus.model.blur_light`). How often they are right stands in docs/networks.md; below 2 px
sharp and slightly soft images look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.interpolate import CubicSpline
from torch import Tensor

from refocus.model.blur_light import FIRST_RUNG, MOST_NATS, support
from refocus.model.blur_spectrum import COLOURS, CREDENCE, NoiseColour, noise_colour, rung_costs
from refocus.model.memory import most_at_once
from refocus.model.normalisation import Normalisation, estimate
from refocus.model.seen import SeenPlane
from refocus.model.specimen import Specimen
from refocus.optics.ladder import BLIND_PROFILES, PROFILES, RADII_PX, RUNG_RATIO, RUNG_SHARES

Float32 = npt.NDArray[np.float32]

#: Planes that a blur takes beside an image: radius and number of the profile.
BLUR_PLANES = 2
#: Images are judged in windows of this size, neighbours overlapping by half where they are few.
WINDOW_PX = 256
#: Along each axis; larger images are sampled, since defocus changes slowly across a field.
_MOST_WINDOWS = 24
#: For the choice of the profile, which is the same everywhere; those with the most contrast.
_WINDOWS_FOR_PROFILE = 9
#: Of these, for what light can explain, which takes longer to find out; those whose spectra say most.
_WINDOWS_FOR_LIGHT = 4
#: Of these, for the colour of the noise, which is the same everywhere; those with the most contrast.
_WINDOWS_FOR_NOISE = 2
#: Contrast is measured on every so many-th pixel.
_THINNED = 4
#: Neighbouring windows share what they know: rungs are chosen on log-likelihoods smoothed over this many windows.
_SMOOTHING_WINDOWS = 0.75
#: Fields whose windows differ by no more are evenly blurred.
_EVEN_RUNGS = 2
#: What light must say more for an unusual aperture that is not the likeliest, in nats a window: on calibration fields
#: 0 to 12 choose alike, and dense sections need some 9.
_USUAL_APERTURE, _CHANGE_NATS = 0.75, 10.0
#: Of the mean over likely radii: how far from the likeliest, and parts of a rung.
_LIKELY_RUNGS, _PARTS = 5, 8
#: By which one blur may differ through NA 0.4 and 0.75.
_SAME_BLUR_RUNGS = 6
#: From 20 px on steep apertures are told by their corners; below they look like NA 0.75 and a smaller radius, and
#: were chosen wrongly as often as rightly.
_FIRST_STEEP_RUNG = 52


@dataclass(frozen=True, slots=True)
class BlurEstimate:
    """Blur of one plane, window by window.

    Attributes
    ----------
    radius_px : ndarray, float32, shape [rows, columns]
        Geometric blur radius at the windows' centres, from 1 px (in focus, as far as a spectrum can tell) up.
    centres_y_px, centres_x_px : ndarray, float32, shapes [rows], [columns]
        Where the windows lie in the plane.
    profile : int
        Number of the profile in :data:`refocus.optics.ladder.PROFILES`: the told one, or the one that fits the whole
        plane best.
    spectrum_nats, light_nats : ndarray, float32, shape [rows, columns, radii]
        What it rests on: what each window's spectrum says against each of :data:`refocus.optics.ladder.RADII_PX`, and
        what light says for it, in the nearest of the few windows that are asked.
    colour : NoiseColour or None
        How the noise falls with frequency; None where it is white.
    """

    radius_px: Float32
    centres_y_px: Float32
    centres_x_px: Float32
    profile: int
    spectrum_nats: Float32
    light_nats: Float32
    colour: NoiseColour | None

    def moved(self, window: tuple[slice, slice]) -> BlurEstimate:
        """The same blur in a plane that it was estimated in this window of."""
        rows, columns = window
        return replace(
            self, centres_y_px=self.centres_y_px + rows.start, centres_x_px=self.centres_x_px + columns.start
        )

    def over(self, rows: slice, columns: slice) -> Float32:
        """Radius and profile at each pixel of a window of the plane, float32 [2, h, w]; linear between centres."""
        return self.laid_over(rows, columns, torch.device("cpu")).numpy()

    def laid_over(self, rows: slice, columns: slice, device: torch.device) -> Tensor:
        """As `over`, made on a device; of an even blur a constant that takes no memory."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if self.radius_px.min() == self.radius_px.max():
            even = torch.tensor([float(self.radius_px.flat[0]), float(self.profile)], device=device)
            return even[:, None, None].expand(2, height, width)
        y, x = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
        # Along x there are few rows: what takes long is the product with all y.
        by_row = np.stack([np.interp(x, self.centres_x_px, row) for row in self.radius_px])
        lower, share = _between(y, self.centres_y_px)
        upper = np.minimum(lower + 1, len(by_row) - 1)
        # Only processors are as fast in double precision.
        kind = torch.float64 if device.type == "cpu" else torch.float32
        across = torch.from_numpy(by_row).to(device, kind)
        above, below = (torch.from_numpy(part[:, None]).to(device) for part in (1.0 - share, share))
        planes = torch.empty(2, height, width, device=device)
        first, last = (across[torch.from_numpy(at).to(device)] for at in (lower, upper))
        planes[0] = first.mul_(above).add_(last.mul_(below))
        planes[1] = self.profile
        return planes


def estimate_blur(
    plane: npt.NDArray[np.generic] | Specimen | SeenPlane,
    *,
    normalisation: Normalisation | None = None,
    profile: int | None = None,
    widest_px: float = RADII_PX[-1],
    device: torch.device | str = "cpu",
) -> BlurEstimate:
    """Estimate the blur of one plane.

    Parameters
    ----------
    plane : ndarray, Specimen or SeenPlane, shape [C, Y, X]
        Any numeric type and unit; colours are averaged. Read window by window: it may be a memory map. A `SeenPlane`
        has its own normalisation and device.
    normalisation : Normalisation, optional
        What tells where no light is; otherwise the plane's own, of a specimen that shines.
    profile : int, optional
        Of the optics, where they are known (:func:`refocus.optics.ladder.nearest_profile`); otherwise the one of
        :data:`refocus.optics.ladder.BLIND_PROFILES` that fits best.
    widest_px : float
        Wider radii are given as this one, where they are not what a network can undo: too wide is worse than too
        narrow.
    device : torch.device or str
        Where windows are judged.
    """
    seen = plane if isinstance(plane, SeenPlane) else _seen(plane, normalisation, torch.device(device))
    specimen, constants = seen.specimen, seen.constants
    rows, columns = (min(length, WINDOW_PX) for length in specimen.shape[1:])
    tops, lefts = (_starts(length) for length in specimen.shape[1:])
    places = [(top, left) for top in tops for left in lefts]

    def windows(places: Sequence[tuple[int, int]]) -> Tensor:
        return torch.stack([_grey(seen[top : top + rows, left : left + columns]) for top, left in places])

    def row(top: int) -> Tensor:
        if not (seen.reads_once and len(lefts) * columns >= specimen.shape[2]):
            return windows([(top, left) for left in lefts])
        strip = _grey(seen[top : top + rows, 0 : specimen.shape[2]])
        return torch.stack([strip[:, left : left + columns] for left in lefts])

    lively = _liveliest(seen, places, (rows, columns))
    looked_at = windows(lively)
    of_contrast = looked_at.flatten(1).std(1, correction=0).topk(min(len(lively), _WINDOWS_FOR_NOISE)).indices
    colour = noise_colour(looked_at[None, of_contrast], profile=profile)
    # What follows is decided on the processor, as by `fitting_blur`.
    known = rung_costs(looked_at, profile=profile, colour=colour).cpu()
    telling = (known.amax(-1) - known.amin(-1)).amax(-1).topk(min(len(lively), _WINDOWS_FOR_LIGHT)).indices
    asked = [lively[number] for number in telling.tolist()]
    within = max(1, sum(radius <= widest_px for radius in RADII_PX))
    told = None if profile is None else [profile]
    (profile,), (gains,) = _likeliest(
        known[None], telling[None], looked_at[None, telling], told, absorbing=constants.absorbing, within=within
    )
    # A row of windows is in memory at a time, on an accelerator as many as there is room for.
    at_once = 1 if seen.device.type == "cpu" else most_at_once(len(lefts) * rows * columns, seen.device)
    by_rows = (torch.cat([row(top) for top in tops[n : n + at_once]]) for n in range(0, len(tops), at_once))
    each = torch.cat([rung_costs(some, profile=profile, colour=colour)[:, 0] for some in by_rows])
    against = each.view(len(tops), len(lefts), -1).cpu()
    away = np.square(np.asarray(places)[:, None] - np.asarray(asked)).sum(-1)
    in_favour = gains[torch.from_numpy(away.argmin(1))].view(against.shape)
    costs = against - in_favour
    chosen = _agreed(_smoothed(costs).argmin(-1))
    if chosen.max() - chosen.min() <= _EVEN_RUNGS:
        # No more than the estimate's own error: one filter for all is better than a patchwork of several.
        radii = _least_costly(costs.sum((0, 1))[None]).expand(chosen.shape)
    else:
        radii = torch.tensor(RADII_PX)[chosen]
    return BlurEstimate(
        radii.clamp(max=widest_px).numpy(),
        np.asarray(tops, np.float32) + 0.5 * (rows - 1),
        np.asarray(lefts, np.float32) + 0.5 * (columns - 1),
        profile,
        against.numpy(),
        in_favour.numpy(),
        COLOURS[int(colour)],
    )


def fitting_blur(images: Tensor, *, profile: int | Sequence[int] | None = None, absorbing: bool = False) -> Tensor:
    """Radius and profile that fit each whole image best, or its radius in a known profile.

    Parameters
    ----------
    images : Tensor, float32, shape [B, C, H, W]
        Normalised.
    profile : int, or B of them, optional
    absorbing : bool
        Whether specimens take light away; images are complements then.

    Returns
    -------
    Tensor, float32, shape [B, 2]
    """
    windows = images.mean(1)
    told = [profile] * len(images) if isinstance(profile, int) else profile
    known = None if told is None else torch.tensor(told).to(images.device, non_blocking=True)
    colour = noise_colour(windows[:, None], profile=known)
    # What follows is decided on the processor: each look at an accelerator's memory waits for its queue.
    costs = rung_costs(windows, profile=known, colour=colour).cpu()
    only = torch.zeros(len(images), 1, dtype=torch.int64)
    numbers, gains = _likeliest(costs[:, None], only, windows[:, None], told, absorbing=absorbing)
    own = torch.stack([by_profile[_row_of(number, told)] for by_profile, number in zip(costs, numbers, strict=True)])
    radii = _least_costly(own - gains[:, 0])
    return torch.stack([radii, torch.tensor(numbers).to(radii)], 1).to(images.device)


def with_blur(images: Tensor, blur: Tensor) -> Tensor:
    """Append radius and profile [B, 2] as planes to images [B, C, H, W]."""
    planes = blur.to(images)[:, :, None, None].expand(-1, -1, *images.shape[-2:])
    return torch.cat([images, planes], 1)


def _least_costly(costs: Tensor) -> Tensor:
    """Radii in pixels by costs [B, radii], between rungs: [B].

    Where light is asked, the mean of what is likely about the lowest point: wide minima lean towards wide blurs, whose
    filters do more harm. Below, the lowest point itself, of a parabola through the best rung and its neighbours.
    """
    known = costs.double().numpy()
    best, last = known.argmin(-1), known.shape[-1] - 1
    about = best.clip(1, last - 1)[:, None] + (-1, 0, 1)
    below, lowest, above = np.take_along_axis(known, about, -1).T
    curvature = below - 2.0 * lowest + above
    bottom = best + 0.5 * (below - above) / np.where(curvature > 0.0, curvature, np.inf)
    between = np.linspace(0.0, last, last * _PARTS + 1)
    cost = CubicSpline(np.arange(last + 1), known, axis=-1)(between)
    near = np.abs(between - between[cost.argmin(-1), None]) <= _LIKELY_RUNGS
    likely = near * np.exp(-CREDENCE * (cost - cost.min(-1, keepdims=True)))
    mean = (likely * between).sum(-1) / likely.sum(-1)
    place = np.select([best == 0, best < FIRST_RUNG], [0.0, bottom], mean)
    return torch.from_numpy(RADII_PX[0] * RUNG_RATIO ** (np.round(RUNG_SHARES * place) / RUNG_SHARES)).float()


def _likeliest(
    costs: Tensor,
    asked: Tensor,
    windows: Tensor,
    told: Sequence[int] | None,
    *,
    absorbing: bool,
    within: int = len(RADII_PX),
) -> tuple[list[int], Tensor]:
    """The profiles that spectra and light find likeliest, or the told ones, and what light says of their rungs.

    Parameters
    ----------
    costs : Tensor, shape [B, n, profiles, radii]
        By the spectra of n windows of each image, of the blind profiles or of the told one alone.
    asked : Tensor, int64, shape [B, m]
        Numbers of those windows among the n whose light is looked at.
    windows : Tensor, shape [B, m, h, w]
        These windows, on any device; all else is the processor's.
    told : sequence of B int, or None
    absorbing : bool
        Whether specimens take light away.
    within : int
        So many of the rungs speak for a profile: a corner at the ladder's end is seldom the blur's.

    Returns
    -------
    profiles : list of B int
    gains : Tensor, shape [B, m, radii]
    """
    each, judged = asked.shape[1], costs[..., :within]
    if told is None:
        cost, lowest = judged.amin(-1).sum(1).tolist(), judged.sum(1).argmin(-1).tolist()
        contenders = [_contenders(*own, each) for own in zip(cost, lowest, strict=True)]
    else:
        contenders = [{number: 0.0} for number in told]
    # Ways are steep through low apertures: against these they speak only where the spectrum prefers another.
    pairs = [
        (image, number, place > 0 or not _is_low(number))
        for image, numbers in enumerate(contenders)
        for place, number in enumerate(numbers)
    ]
    image, number, doubted = torch.tensor(pairs).unbind(1)
    own = costs[image[:, None], asked[image], torch.tensor([[_row_of(number, told)] for _, number, _ in pairs])]
    gains = support(
        windows[image.to(windows.device, non_blocking=True)].flatten(0, 1),
        own.flatten(0, 1),
        number.repeat_interleave(each),
        doubted=doubted.bool().repeat_interleave(each),
        absorbing=absorbing,
    ).view_as(own)
    gained = (own[..., :within].amin(-1) - (own - gains)[..., :within].amin(-1)).sum(-1).tolist()
    totals = [contenders[of][through] - gain for (of, through, _), gain in zip(pairs, gained, strict=True)]
    by_image = groupby(range(len(pairs)), key=lambda place: pairs[place][0])
    best = [min(places, key=lambda place: totals[place]) for _, places in by_image]
    return [pairs[place][1] for place in best], gains[best]


def _contenders(costs: Sequence[float], lowest: Sequence[int], windows_for_light: int) -> dict[int, float]:
    """Blind profiles that light may choose from, the likeliest first, and what they cost all windows without it.

    They are the best one of each aperture, as far as light in so many windows could make up for its cost. `costs` are
    the spectrum's of each blind profile, and `lowest` the rungs where they are lowest.
    """
    by_profile = dict(zip(BLIND_PROFILES, costs, strict=True))
    rungs = dict(zip(BLIND_PROFILES, lowest, strict=True))
    likeliest = sorted(by_profile, key=lambda number: by_profile[number])
    first = next(number for number in likeliest if not _is_steep(number))
    # The same blur counts a few rungs more or less through another aperture: of blurs at the edge of what is looked at
    # only the other one would be, and gain by it.
    lowest_rung = FIRST_RUNG if rungs[first] >= FIRST_RUNG else FIRST_RUNG + _SAME_BLUR_RUNGS
    best = {PROFILES[first].numerical_aperture: first}
    for number in likeliest:
        within_reach = by_profile[number] - by_profile[first] <= MOST_NATS * windows_for_light
        if within_reach and rungs[number] >= (_FIRST_STEEP_RUNG if _is_steep(number) else lowest_rung):
            best.setdefault(PROFILES[number].numerical_aperture, number)
    changed = [n for n in best.values() if n != first and PROFILES[n].numerical_aperture != _USUAL_APERTURE]
    price = _CHANGE_NATS * windows_for_light
    return {number: by_profile[number] + (price if number in changed else 0.0) for number in best.values()}


def _row_of(number: int, told: Sequence[int] | None) -> int:
    """Where a profile's costs stand among those of the blind ones, or of the told one alone."""
    return BLIND_PROFILES.index(number) if told is None else 0


def _is_low(number: int) -> bool:
    return PROFILES[number].numerical_aperture < 0.5


def _is_steep(number: int) -> bool:
    return PROFILES[number].numerical_aperture > 0.8


def _seen(
    plane: npt.NDArray[np.generic] | Specimen, normalisation: Normalisation | None, device: torch.device
) -> SeenPlane:
    specimen = plane if isinstance(plane, Specimen) else Specimen.of(plane)
    return SeenPlane(specimen, normalisation or estimate(specimen.visible()), device)


def _grey(window: Tensor) -> Tensor:
    """Mean of the colours [C, h, w]."""
    return window[0] if len(window) == 1 else window.mean(0)


def _liveliest(seen: SeenPlane, places: Sequence[tuple[int, int]], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Places of the windows with the most contrast, in their order."""
    if len(places) <= _WINDOWS_FOR_PROFILE:
        return list(places)
    contrast = seen.contrasts(places, size, _THINNED)
    return [places[number] for number in sorted(np.argsort(-contrast, kind="stable")[:_WINDOWS_FOR_PROFILE])]


def _starts(size: int) -> list[int]:
    """First pixels of the windows along one axis."""
    if size <= WINDOW_PX:
        return [0]
    count = min(_MOST_WINDOWS, max(2, round(1.5 * size / WINDOW_PX)))
    return [int(start) for start in np.linspace(0, size - WINDOW_PX, count).round()]


def _smoothed(costs: Tensor) -> Tensor:
    """Gaussian sums over neighbouring windows of [rows, columns, radii]."""
    for axis in (0, 1):
        place = torch.arange(costs.shape[axis], dtype=torch.float32)
        weights = torch.exp(-0.5 * ((place[:, None] - place) / _SMOOTHING_WINDOWS).square())
        costs = torch.tensordot(weights, costs, dims=([1], [axis])).movedim(0, axis)
    return costs


def _agreed(rungs: Tensor) -> Tensor:
    """Median of each window and its neighbours, [rows, columns]: what one alone says is an error, not another focus."""
    padded = F.pad(rungs[None, None].float(), (1, 1, 1, 1), mode="replicate")[0, 0]
    return padded.unfold(0, 3, 1).unfold(1, 3, 1).flatten(-2).median(-1).values.to(torch.int64)


def _between(at: npt.NDArray[np.int64], centres: Float32) -> tuple[npt.NDArray[np.int64], Float32]:
    """Index of the centre at or before each position, and the share of the next one."""
    if len(centres) == 1:
        return np.zeros(len(at), np.int64), np.zeros(len(at), np.float32)
    lower = np.clip(np.searchsorted(centres, at, side="right") - 1, 0, len(centres) - 2)
    share = (at - centres[lower]) / (centres[lower + 1] - centres[lower])
    return lower, np.clip(share, 0.0, 1.0).astype(np.float32)
