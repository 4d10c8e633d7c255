"""How far out of focus, read off the image's own spectrum: no network, no training, no knowledge of the optics.

Defocus leaves rings of zeros in the power spectrum, whose spacing is the blur. Each rung of
:mod:`refocus.optics.ladder` is judged by its Whittle likelihood (Whittle 1953): a windowed spectrum P at frequency f
is exponentially distributed about

    S(f) = A (f^2 + k^2)^(-p / 2) |H(f)|^2 + N,

a falling spectrum of natural images (Ruderman and Bialek 1994) seen through the transfer function H, over noise N.
Amplitude A is fitted for each rung, and exponent p and knee k are averaged over: a rung that fits many plausible
textures fairly well is likelier than one that fits an odd one best.

A camera's noise is white, and N is read beyond 0.46 cycles per pixel. What was smoothed, enlarged, turned, compressed
or interpolated from a colour camera's mosaic since has noise that falls with frequency, and none there; taken for
white, it hides every blur. :func:`noise_colour` finds how it falls.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from refocus.model.memory import most_at_once
from refocus.optics.camera import falling_power
from refocus.optics.ladder import BLIND_PROFILES, FREQUENCIES, PROFILES, RADII_PX, blur_ladder, cycles_per_px

_BINS = 256
_NOISE_BINS = slice(118, 151)
_FIRST_BIN, _FINE_UP_TO, _COARSE_STEP = 2, 40, 6
_EXPONENTS = (2.0, 3.0, 4.0, 5.0)
_KNEES = (0.0, 0.02, 0.04)
#: How unlikely each is, in nats: from how often it fits best at the true blur, 75 training specimens out of focus.
_TEXTURE_NATS = ((2.0, 2.2, 1.4), (1.1, 1.7, 1.3), (0.3, 0.4, 0.9), (2.5, 0.1, 0.0))
#: Real spectra stray further from any of these than chance would, so a nat of fit counts as this many.
CREDENCE = 0.3
#: A ring of a thousand frequencies is no thousand independent proofs: real spectra are not round.
_MOST_PROOFS = 40.0
#: Nor are the lowest rings: a few large objects leave rings of their own there. From this bin on a proof counts whole.
_WHOLE_BIN = 10
_NEWTON_STEPS = 3
#: Where the spectrum does not tell the profile from texture, the usual one: in nats, log-normal in the sampling.
_USUAL_SAMPLING, _SAMPLING_SPREAD, _SAMPLING_NATS = 0.42, 0.5, 4.0
_USUAL_PROFILE = 6
_APERTURE_NATS = {0.4: 4.0, 0.75: 0.0, 0.88: 5.0}
#: How noise may fall.
_CUTOFFS, _ORDERS = (0.12, 0.15, 0.19, 0.24, 0.3, 0.37, 0.45), (2.0, 4.0, 8.0)
#: It counts where it explains a window better by so many nats than white noise does through any blur, and, since sharp
#: detail falls, too, only with a blur from this rung on, better by so many nats than with narrower ones.
_BEYOND_WHITE_NATS, _FIRST_COLOURED, _BEYOND_SHARP_NATS = 100.0, 27, 20.0
#: Where white noise has it wide, which is the worst of errors, so many are enough. By both rules 5 of 1350 scenes as
#: cameras record them (225 fields, in focus to 28 px, NA 0.75, 1500 photons) are taken for processed.
_BEYOND_WIDE_NATS = 50.0
#: Of the rungs that are looked at for that.
_STRIDE = 3
#: Where its power is read: between these shares of its white level.
_FALLING_FROM, _FALLING_TO = 0.45, 0.08
#: Smaller windows say nothing.
_SMALLEST_PX = 32
#: A spectrum to which all rungs are alike, to so many nats, must not say that its image is far out of focus.
_LEAST_NATS = 10.0


class NoiseColour(NamedTuple):
    """Noise whose power falls with frequency as `refocus.optics.camera.falling_power` has it.

    Attributes
    ----------
    cutoff_per_px : float
        In cycles per pixel.
    order : float
        2 is a Gaussian filter's; the higher, the more abrupt.
    """

    cutoff_per_px: float
    order: float


#: Where none of these is better than white noise by so many nats none of the others is by enough: 97% of images as
#: cameras record them take a fifth of the time.
_FIRST_LOOK, _WORTH_MORE_NATS = [NoiseColour(0.15, 4.0), NoiseColour(0.24, 4.0), NoiseColour(0.37, 4.0)], 30.0
_FALLS = [*_FIRST_LOOK, *(NoiseColour(*fall) for fall in product(_CUTOFFS, _ORDERS) if fall not in _FIRST_LOOK)]
#: What noise may be; None is white.
COLOURS: tuple[NoiseColour | None, ...] = (None, *_FALLS)


def noise_colour(windows: Tensor, *, profile: int | Tensor | None = None) -> Tensor:
    """How the noise of images falls with frequency, as far as their spectra tell.

    Parameters
    ----------
    windows : Tensor, float32, shape [..., n, h, w]
        So many of each image.
    profile : int or Tensor, int64, shape [...], optional
        Of the optics; otherwise the usual one.

    Returns
    -------
    Tensor, int64, shape [...]
        Numbers in :data:`COLOURS`.
    """
    white = torch.zeros(windows.shape[:-3], dtype=torch.int64, device=windows.device)
    side = min(windows.shape[-2:])
    if side < _SMALLEST_PX:
        return white
    with torch.no_grad(), torch.autocast(windows.device.type, enabled=False):
        seen = _spectra(windows.float())
        rungs, slopes = _rung_tables(side, windows.device)
        shapes = _shapes(rungs[_USUAL_PROFILE if profile is None else profile][..., None, ::_STRIDE, :], slopes)
        costs = _costs_by_colour(seen, shapes, range(1 + len(_FIRST_LOOK)))
        least = costs.amin(-1)
        doubtful = least[0] - least[1:].amin(0) >= _WORTH_MORE_NATS
        if not doubtful.any():
            return white
        costs = torch.cat([costs, _costs_by_colour(seen, shapes, range(len(costs), len(COLOURS)))])
        least = costs.amin(-1)
        falling, best = least[1:].min(0)
        beyond_white = least[0] - falling
        beyond_sharp = costs[1:, ..., : _FIRST_COLOURED // _STRIDE].amin((0, -1)) - falling
        falls = (beyond_white > _BEYOND_WHITE_NATS) & (beyond_sharp > _BEYOND_SHARP_NATS)
        unsure = (beyond_white > _BEYOND_WIDE_NATS) & ~falls & doubtful
        if unsure.any():
            told = profile[..., None] if isinstance(profile, Tensor) else profile
            by_white = rung_costs(windows, profile=told).sum(-3).amin(-2)
            falls |= unsure & (by_white.argmin(-1) >= _FIRST_COLOURED)
    return torch.where(falls & doubtful, best + 1, white)


def rung_costs(windows: Tensor, *, profile: int | Tensor | None = None, colour: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of each rung of the ladder, up to a constant of the window.

    Parameters
    ----------
    windows : Tensor, float32, shape [..., h, w]
        In any unit.
    profile : int or Tensor, int64, shape [...], optional
        The only one to judge; otherwise :data:`refocus.optics.ladder.BLIND_PROFILES` are.
    colour : Tensor, int64, shape [...], optional
        Of the noise (:func:`noise_colour`); otherwise it is white.

    Returns
    -------
    Tensor, float32, shape [..., profiles, radii]
        All radii alike where a window is too small or too empty to tell.
    """
    shape = (len(BLIND_PROFILES) if profile is None else 1, len(RADII_PX))
    side = min(windows.shape[-2:])
    # Of all that fit alike the usual profile: others are what networks have seen least of.
    alike = (_unusual(windows.device) if profile is None else torch.zeros(1, device=windows.device))[:, None]
    if side < _SMALLEST_PX:
        return alike.expand(*windows.shape[:-2], *shape)
    with torch.no_grad(), torch.autocast(windows.device.type, enabled=False):
        seen = _spectra(windows.float())
        rungs, slopes = _rung_tables(side, windows.device)
        judged = rungs[_blind(windows.device)].flatten(0, 1) if profile is None else rungs[profile]
        noise = _noise(seen, torch.zeros_like(seen.white, dtype=torch.int64) if colour is None else colour)
        costs = _costs(seen, _shapes(judged, slopes), noise)
        costs = costs.view(*costs.shape[:-1], *shape) + alike
        costs = costs - costs.amin((-2, -1), keepdim=True)
        silent = seen.empty | ((costs.amax(-1) - costs.amin(-1)).amax(-1) < _LEAST_NATS)
        return torch.where(silent[..., None, None], alike, costs)


def _shapes(rungs: Tensor, slopes: Tensor) -> Tensor:
    """Spectra of each texture seen through each of `rungs` [..., R, bins]: [..., R textures, bins]."""
    return (rungs[..., None, :] * slopes).flatten(-3, -2)


def _costs_by_colour(seen: _Spectra, shapes: Tensor, colours: range) -> Tensor:
    """Costs [colours, ..., R], means over the windows of an image."""
    numbers = torch.arange(colours.start, colours.stop, device=shapes.device)
    return _costs(seen, shapes, _noise(seen, numbers.view(-1, *[1] * seen.white.ndim))).mean(-2)


def _costs(seen: _Spectra, shapes: Tensor, noise: Tensor) -> Tensor:
    """Costs of rungs [..., R] over `noise` [..., bins], averaged over textures of `shapes` [..., R textures, bins]."""
    parts = torch.split(shapes, most_at_once(noise.numel(), noise.device), -2)
    misfit = torch.cat([_misfit(seen.power.expand_as(noise), noise, seen.proofs, part) for part in parts], -1)
    unlikely = _unlikely(misfit.device)
    by_texture = misfit.view(*misfit.shape[:-1], -1, len(unlikely))
    return -torch.logsumexp(-CREDENCE * by_texture - unlikely, -1) / CREDENCE


def _misfit(power: Tensor, noise: Tensor, proofs: Tensor, shapes: Tensor) -> Tensor:
    """Negative log-likelihood of shapes of spectra [..., S, bins] over `noise` [..., bins] at their best amplitudes.

    Newton steps on the amplitude's logarithm. With q the inverse of what is expected, the signal's share of it is
    1 - noise q, so that sums over bins are products of q and of its square with two vectors each.
    """
    low = slice(0, 6)
    amplitude = (power * proofs)[..., low].sum(-1, keepdim=True) / (shapes[..., low] @ proofs[low]).clamp_min(1e-20)
    of_inverse = torch.stack([proofs * noise, proofs * power], -1)
    of_square = torch.stack([proofs * power * noise, proofs * noise.square()], -1)
    total, noise = proofs.sum(), noise[..., None, :]
    expected = shapes.new_empty(*amplitude.shape, shapes.shape[-1])
    for _ in range(_NEWTON_STEPS):
        inverse = torch.addcmul(noise, shapes, amplitude[..., None], out=expected).reciprocal_()
        of_noise, seen = (inverse @ of_inverse).unbind(-1)
        seen_of_noise, of_noise_twice = (inverse.square_() @ of_square).unbind(-1)
        slope = total - of_noise - seen + seen_of_noise
        curvature = (total - 2.0 * of_noise + of_noise_twice).clamp_min(1e-9)
        amplitude = amplitude * torch.exp((-slope / curvature).clamp(-1.5, 1.5))
    torch.addcmul(noise, shapes, amplitude[..., None], out=expected)
    return (expected.reciprocal() @ of_inverse[..., 1:])[..., 0] + expected.log_() @ proofs


def _noise(seen: _Spectra, colours: Tensor) -> Tensor:
    """Power of the noise [..., bins]: what is white and, as much as is seen where it falls, what is coloured."""
    falling, read = (table[colours] for table in _falls(seen.power.device))
    white = seen.white[..., None]
    return white + ((seen.power - white) * read).sum(-1, keepdim=True).clamp_min(0.0) * falling


@lru_cache(maxsize=4)
def _falls(device: torch.device) -> tuple[Tensor, Tensor]:
    """By number of `COLOURS` [colours, bins]: power of what is coloured, and what bins that tell its level count."""
    power, read = torch.zeros(2, len(COLOURS), len(_bin_centres()))
    for number, colour in enumerate(_FALLS, 1):
        power[number] = falling = falling_power(_bin_centres(), colour.cutoff_per_px, colour.order)
        within = (falling <= _FALLING_FROM) & (falling >= _FALLING_TO)
        if not within.any():
            # The fall is steeper than bins are wide, or lies beyond the last.
            within = (falling - _FALLING_FROM).abs() == (falling - _FALLING_FROM).abs().min()
        read[number] = within / falling[within].sum()
    return power.to(device), read.to(device)


class _Spectra(NamedTuple):
    """Radial power spectra in units of their largest bin.

    Attributes
    ----------
    power : Tensor, shape [..., bins]
    white : Tensor, shape [...]
        The noise where it is white.
    proofs : Tensor, shape [bins]
        Independent observations that a bin counts for.
    empty : Tensor, bool, shape [...]
        Nothing there but rounding.
    """

    power: Tensor
    white: Tensor
    proofs: Tensor
    empty: Tensor


def _spectra(windows: Tensor) -> _Spectra:
    height, width = windows.shape[-2:]
    # Squares of squares would leave float32's range in units such as 1e-12.
    windows = windows / windows.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    taper = _taper(height, width, windows.device)
    level = (windows * taper).sum((-2, -1), keepdim=True) / taper.sum()
    power = torch.fft.rfft2((windows - level) * taper).abs().square() / (height * width)
    bins, counts, groups, worth = _radial_bins(height, width, windows.device)
    rings = power.new_zeros(*power.shape[:-2], 182).index_add_(-1, bins, power.flatten(-2))[..., : len(counts)]
    white = rings[..., _NOISE_BINS].sum(-1) / counts[_NOISE_BINS].sum().clamp_min(1.0)
    count = counts @ groups
    grouped = (rings @ groups) / count.clamp_min(1.0)
    unit = grouped.amax(-1, keepdim=True).clamp_min(1e-20)
    # Below a millionth of the level there is rounding, not texture.
    empty = unit[..., 0] <= 1e-12 * level[..., 0, 0].square()
    proofs = count / (1.0 + count / _MOST_PROOFS) * worth
    return _Spectra(grouped / unit, (white / unit[..., 0]).clamp_min(1e-9), proofs, empty)


@lru_cache(maxsize=16)
def _taper(height: int, width: int, device: torch.device) -> Tensor:
    taper = torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(width, periodic=False)
    return (taper / taper.square().mean().sqrt()).to(device)


@lru_cache(maxsize=64)
def _radial_bins(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ring of each frequency, frequencies a ring, rings judged together [rings, bins], and what each bin counts."""
    down, across = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    ring = ((down[:, None].square() + across.square()).sqrt() * _BINS).round().to(torch.int64).flatten()
    counts = torch.bincount(ring, minlength=182).float()[: _NOISE_BINS.stop]
    edges = _edges()
    groups = torch.zeros(_NOISE_BINS.stop, len(edges) - 1)
    for number in range(len(edges) - 1):
        groups[edges[number] : edges[number + 1], number] = 1.0
    worth = (torch.tensor(edges[:-1]) / _WHOLE_BIN).clamp(max=1.0)
    return ring.to(device), counts.to(device), groups.to(device), worth.to(device)


def _edges() -> list[int]:
    return [*range(_FIRST_BIN, _FINE_UP_TO), *range(_FINE_UP_TO, _NOISE_BINS.start + 1, _COARSE_STEP)]


@lru_cache(maxsize=1)
def _bin_centres() -> Tensor:
    """Frequencies of the bins, cycles per pixel."""
    edges = torch.tensor(_edges(), dtype=torch.float32)
    return 0.5 * (edges[:-1] + edges[1:] - 1.0) / _BINS


@lru_cache(maxsize=16)
def _rung_tables(side_px: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """``|H|^2`` by rung [profiles, radii, bins] and slopes of natural spectra [priors, bins].

    A window smears the spectrum by about its inverse side, which fills the zeros; so does the table.
    """
    fine = cycles_per_px()
    power = blur_ladder().defocused.square().flatten(0, 1)
    step = 0.5 / (FREQUENCIES - 1)
    sigma = 0.7 / side_px / step
    reach = max(1, math.ceil(3 * sigma))
    offset = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offset / sigma).square())
    mirrored = F.pad(power[:, None], (reach, reach), mode="reflect")
    smeared = F.conv1d(mirrored, (kernel / kernel.sum())[None, None])[:, 0]
    edges = torch.tensor(_edges(), dtype=torch.float32)
    centres = _bin_centres()
    # A coarse bin sees the mean over its width.
    spread = (edges[1:] - edges[:-1] - 1.0) / _BINS
    samples = torch.stack([centres + spread * share for share in (-0.4, -0.2, 0.0, 0.2, 0.4)])
    index = (samples / (fine[1] - fine[0])).round().to(torch.int64).clamp(max=FREQUENCIES - 1)
    table = smeared[:, index].mean(1).reshape(len(PROFILES), len(RADII_PX), -1)
    slopes = torch.stack(
        [(centres.square() + knee**2) ** (-exponent / 2) for exponent in _EXPONENTS for knee in _KNEES]
    )
    return table.to(device), (slopes / slopes[:, :1]).to(device)


@lru_cache(maxsize=4)
def _blind(device: torch.device) -> Tensor:
    return torch.tensor(BLIND_PROFILES, device=device)


@lru_cache(maxsize=4)
def _unlikely(device: torch.device) -> Tensor:
    """What each texture must make up for by its fit, in the order of slopes, in nats."""
    return torch.tensor(_TEXTURE_NATS, device=device).flatten()


@lru_cache(maxsize=4)
def _unusual(device: torch.device) -> Tensor:
    """What each profile must make up for by its fit where the optics are not known, in nats."""
    return torch.tensor(
        [
            _SAMPLING_NATS * (math.log(profile.sampling / _USUAL_SAMPLING) / _SAMPLING_SPREAD) ** 2
            + _APERTURE_NATS[profile.numerical_aperture]
            for profile in (PROFILES[number] for number in BLIND_PROFILES)
        ],
        device=device,
    )
