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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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


_COLOURS = tuple(NoiseColour(cutoff, order) for order in _ORDERS for cutoff in _CUTOFFS)
#: Where none of these is better than white noise by so many nats none of the others is by enough: 97% of images as
#: cameras record them take a fifth of the time.
_FIRST_LOOK, _WORTH_MORE_NATS = (NoiseColour(0.15, 4.0), NoiseColour(0.24, 4.0), NoiseColour(0.37, 4.0)), 30.0


def noise_colour(windows: Tensor, *, profile: int | None = None) -> NoiseColour | None:
    """How the noise of an image falls with frequency, or None where it is white as far as its spectrum tells.

    Parameters
    ----------
    windows : Tensor, float32, shape [B, h, w]
        Of one image.
    profile : int, optional
        Of the optics; otherwise the usual one.
    """
    side = min(windows.shape[-2:])
    if side < _SMALLEST_PX:
        return None
    with torch.no_grad(), torch.autocast(windows.device.type, enabled=False):
        seen = _spectra(windows.float())
        rungs, slopes = _rung_tables(side, windows.device)
        rungs = rungs[_USUAL_PROFILE if profile is None else profile, ::_STRIDE]
        shapes = (rungs[:, None] * slopes).flatten(0, 1)
        by_white = _costs(seen, shapes, None).mean(0)
        at_first = min(_costs(seen, shapes, colour).mean(0).amin() for colour in _FIRST_LOOK)
        if by_white.amin() - at_first < _WORTH_MORE_NATS:
            return None
        costs = torch.stack([_costs(seen, shapes, colour).mean(0) for colour in _COLOURS])
    by_colour = costs.amin(-1)
    best = int(by_colour.argmin())
    beyond_white = by_white.amin() - by_colour[best]
    beyond_sharp = costs[:, : _FIRST_COLOURED // _STRIDE].amin() - by_colour[best]
    if beyond_white > _BEYOND_WHITE_NATS and beyond_sharp > _BEYOND_SHARP_NATS:
        return _COLOURS[best]
    if beyond_white > _BEYOND_WIDE_NATS:
        radius = rung_costs(windows, profile=profile).sum(0).amin(0).argmin()
        return _COLOURS[best] if radius >= _FIRST_COLOURED else None
    return None


def rung_costs(windows: Tensor, *, profile: int | None = None, colour: NoiseColour | None = None) -> Tensor:
    """Negative log-likelihood of each rung of the ladder, up to a constant of the window.

    Parameters
    ----------
    windows : Tensor, float32, shape [B, h, w]
        In any unit.
    profile : int, optional
        The only one to judge; otherwise :data:`refocus.optics.ladder.BLIND_PROFILES` are.
    colour : NoiseColour, optional
        Of the noise (:func:`noise_colour`); otherwise it is white.

    Returns
    -------
    Tensor, float32, shape [B, profiles, radii]
        All radii alike where a window is too small or too empty to tell.
    """
    judged = list(BLIND_PROFILES) if profile is None else [profile]
    shape = (len(judged), len(RADII_PX))
    side = min(windows.shape[-2:])
    # Of all that fit alike the usual profile: others are what networks have seen least of.
    alike = _unusual(windows.device).to(windows) if profile is None else windows.new_zeros(1)
    if side < _SMALLEST_PX:
        return alike[:, None].expand(len(windows), *shape)
    with torch.no_grad(), torch.autocast(windows.device.type, enabled=False):
        seen = _spectra(windows.float())
        rungs, slopes = _rung_tables(side, windows.device)
        shapes = (rungs[judged].flatten(0, 1)[:, None] * slopes).flatten(0, 1)
        costs = _costs(seen, shapes, colour)
        if profile is None:
            costs = costs + _unusual(windows.device).to(costs).repeat_interleave(len(RADII_PX))
        costs = (costs - costs.amin(-1, keepdim=True)).reshape(-1, *shape)
        silent = seen.empty | ((costs.amax(-1) - costs.amin(-1)).amax(-1) < _LEAST_NATS)
        return torch.where(silent[:, None, None], alike[:, None], costs)


def _costs(seen: _Spectra, shapes: Tensor, colour: NoiseColour | None) -> Tensor:
    """Costs of rungs [B, R], averaged over the textures of `shapes` [R textures, bins]."""
    misfit = torch.stack(
        [
            _misfit(power, _coloured(power, white, colour), seen.proofs, shapes)
            for power, white in zip(seen.power, seen.noise, strict=True)
        ]
    )
    unlikely = _unlikely(misfit.device)
    return -torch.logsumexp(-CREDENCE * misfit.reshape(len(misfit), -1, len(unlikely)) - unlikely, -1) / CREDENCE


def _misfit(power: Tensor, noise: Tensor, proofs: Tensor, shapes: Tensor) -> Tensor:
    """Negative log-likelihood of each shape of spectrum [S, bins] over `noise` [bins] at its best amplitude, [S].

    Newton steps on the amplitude's logarithm. With q the inverse of what is expected, the signal's share of it is
    1 - noise q, so that sums over bins are products of q and of its square with two vectors each.
    """
    low = slice(0, 6)
    amplitude = (power * proofs)[low].sum() / (shapes[:, low] @ proofs[low]).clamp_min(1e-20)
    of_inverse = torch.stack([proofs * noise, proofs * power], 1)
    of_square = torch.stack([proofs * power * noise, proofs * noise.square()], 1)
    total = proofs.sum()
    expected = torch.empty_like(shapes)
    for _ in range(_NEWTON_STEPS):
        inverse = torch.mul(shapes, amplitude[:, None], out=expected).add_(noise).reciprocal_()
        of_noise, seen = (inverse @ of_inverse).unbind(1)
        seen_of_noise, of_noise_twice = (inverse.square_() @ of_square).unbind(1)
        slope = total - of_noise - seen + seen_of_noise
        curvature = (total - 2.0 * of_noise + of_noise_twice).clamp_min(1e-9)
        amplitude = amplitude * torch.exp((-slope / curvature).clamp(-1.5, 1.5))
    torch.mul(shapes, amplitude[:, None], out=expected).add_(noise)
    return expected.reciprocal() @ of_inverse[:, 1] + expected.log_() @ proofs


def _coloured(power: Tensor, white: Tensor, colour: NoiseColour | None) -> Tensor:
    """Power of the noise [bins]: `white` and, as much as `power` shows where it falls, what is coloured."""
    if colour is None:
        return white.expand(len(power))
    falling, read = _fall(colour, power.device)
    level = (power[read].mean() - white).clamp_min(0.0) / falling[read].mean()
    return white + level * falling


@lru_cache(maxsize=64)
def _fall(colour: NoiseColour, device: torch.device) -> tuple[Tensor, Tensor]:
    """Power of coloured noise [bins], and numbers of the bins that it is read in."""
    falling = falling_power(_bin_centres(), colour.cutoff_per_px, colour.order)
    read = (falling <= _FALLING_FROM) & (falling >= _FALLING_TO)
    if not read.any():
        # The fall is steeper than bins are wide, or lies beyond the last.
        read = (falling - _FALLING_FROM).abs() == (falling - _FALLING_FROM).abs().min()
    return falling.to(device), read.nonzero().flatten().to(device)


class _Spectra(NamedTuple):
    """Radial power spectra in units of their largest bin.

    Attributes
    ----------
    power : Tensor, shape [B, bins]
    noise : Tensor, shape [B]
    proofs : Tensor, shape [bins]
        Independent observations that a bin counts for.
    empty : Tensor, bool, shape [B]
        Nothing there but rounding.
    """

    power: Tensor
    noise: Tensor
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
    rings = power.new_zeros(len(windows), 182).index_add_(1, bins, power.flatten(1))[:, : len(counts)]
    noise = rings[:, _NOISE_BINS].sum(1) / counts[_NOISE_BINS].sum().clamp_min(1.0)
    count = counts @ groups
    grouped = (rings @ groups) / count.clamp_min(1.0)
    unit = grouped.amax(1, keepdim=True).clamp_min(1e-20)
    # Below a millionth of the level there is rounding, not texture.
    empty = unit[:, 0] <= 1e-12 * level[:, 0, 0].square()
    proofs = count / (1.0 + count / _MOST_PROOFS) * worth
    return _Spectra(grouped / unit, (noise / unit[:, 0]).clamp_min(1e-9), proofs, empty)


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
