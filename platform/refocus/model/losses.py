"""What training minimises, each a mean over samples of one number a sample.

Images are in normalised units, [B, C, H, W], and float32: losses are taken outside of mixed precision.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from refocus.model.networks import Prediction

#: Mean squared error, in normalised units squared, below which getting better no longer counts: 60 dB.
MSE_FLOOR = 1e-6
_SSIM_SIGMA_PX = 1.5
_SSIM_TAPS = 11
#: Wang, Simoncelli, Bovik, "Multiscale structural similarity", 2003; cut at four scales for crops of 96 px and up.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363)


def log_mse(image: Tensor, target: Tensor) -> Tensor:
    """Half the logarithm of each sample's mean squared error: the mean of PSNR up to a factor.

    A decibel weighs the same in a nearly sharp sample as in a hopeless one, which keeps in-focus input safe; the
    squared error inside keeps the light, where the absolute error's median loses the tails of bright structures.
    """
    return 0.5 * torch.log(_mse(image, target) + MSE_FLOOR).mean()


def harm(image: Tensor, target: Tensor, given: Tensor) -> Tensor:
    """By how much `log_mse` exceeds that of the image as it was given, for samples that were better left alone.

    A soft image in focus looks like a sharp one a little out of it. Who cannot tell should rather do nothing.
    """
    ratio = (_mse(image, target) + MSE_FLOOR) / (_mse(given, target) + MSE_FLOOR)
    return (0.5 * ratio.log()).clamp_min(0.0).mean()


def charbonnier(image: Tensor, target: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Smooth absolute error, ``sqrt(d^2 + epsilon^2)`` (Charbonnier et al. 1994)."""
    return ((image - target).square() + epsilon**2).sqrt().mean()


def berhu(image: Tensor, target: Tensor, share: float = 0.2) -> Tensor:
    """Reversed Huber: absolute below a threshold, squared above it.

    The threshold is `share` of the standard deviation of each target, as in Deep-Z and Deep-R.
    """
    threshold = share * target.detach().flatten(1).std(1).clamp_min(1e-3).reshape(-1, 1, 1, 1)
    distance = (image - target).abs()
    return torch.where(distance <= threshold, distance, (distance.square() + threshold**2) / (2 * threshold)).mean()


def fourier(image: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of orthonormal spectra: errors count alike at all frequencies.

    A raised-cosine window keeps the crop's edges, which differ from nothing in the specimen, out of it.
    """
    height, width = image.shape[-2:]
    window = torch.hann_window(height, False, device=image.device)[:, None] * torch.hann_window(
        width, False, device=image.device
    )
    return torch.fft.rfft2((image - target) * window, norm="ortho").abs().mean()


def ms_ssim(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean SSIM and multi-scale SSIM over samples.

    The range that its constants refer to is each target's own (at least a quarter of the normalised unit). Terms
    are clamped from below: anti-correlated patches make them negative, and a root of those is NaN.

    Returns
    -------
    tuple of Tensor
        SSIM at full resolution, MS-SSIM; both scalars, at most 1.
    """
    span = (target.detach().flatten(1).amax(1) - target.detach().flatten(1).amin(1)).clamp_min(0.25)
    c1 = (0.01 * span).square().reshape(-1, 1, 1, 1)
    c2 = (0.03 * span).square().reshape(-1, 1, 1, 1)
    scales = min(len(_SCALE_WEIGHTS), max(1, int(math.log2(max(min(image.shape[-2:]) / _SSIM_TAPS, 1.0))) + 1))
    weights = torch.tensor(_SCALE_WEIGHTS[:scales])
    weights = weights / weights.sum()
    full: Tensor | None = None
    product: Tensor | None = None
    for scale in range(scales):
        luminance, structure = _ssim_terms(image, target, c1, c2)
        if full is None:
            full = (luminance * structure).mean()
        last = scale == scales - 1
        term = ((luminance * structure) if last else structure).mean((2, 3)).clamp_min(1e-3) ** float(weights[scale])
        product = term if product is None else product * term
        if not last:
            image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
    assert full is not None
    assert product is not None
    return full, product.mean()


def _ssim_terms(image: Tensor, target: Tensor, c1: Tensor, c2: Tensor) -> tuple[Tensor, Tensor]:
    stacked = torch.cat([image, target, image * image, target * target, image * target], 1)
    if min(image.shape[-2:]) >= _SSIM_TAPS:
        down, across = (_gaussian_band(n, image.device) for n in image.shape[-2:])
        smooth = down @ stacked @ across.T
    else:
        smooth = stacked.mean((2, 3), keepdim=True)
    mean_i, mean_t, square_i, square_t, cross = smooth.chunk(5, 1)
    variance = (square_i - mean_i**2).clamp_min(0) + (square_t - mean_t**2).clamp_min(0)
    luminance = (2 * mean_i * mean_t + c1) / (mean_i**2 + mean_t**2 + c1)
    return luminance, (2 * (cross - mean_i * mean_t) + c2) / (variance + c2)


@lru_cache(maxsize=32)
def _gaussian_band(size: int, device: torch.device) -> Tensor:
    """Rows that smooth `size` samples where the window fits: on a CPU a product with this band outruns convolution."""
    # Kept for training as well, whoever asks first.
    with torch.inference_mode(False):
        taps = torch.arange(_SSIM_TAPS, dtype=torch.float32, device=device) - _SSIM_TAPS // 2
        kernel = torch.exp(-0.5 * (taps / _SSIM_SIGMA_PX) ** 2)
        rows = torch.zeros(size - _SSIM_TAPS + 1, size, device=device)
        at = torch.arange(size - _SSIM_TAPS + 1, device=device)
        for tap, weight in enumerate(kernel / kernel.sum()):
            rows[at, at + tap] = weight
        return rows


def light(image: Tensor, target: Tensor) -> Tensor:
    """Absolute relative error of each sample's total signal: defocus moves light about and takes none away."""
    got, wanted = image.flatten(1).mean(1), target.flatten(1).mean(1)
    return ((got - wanted).abs() / wanted.abs().clamp_min(0.05)).mean()


def laplace_nll(image: Tensor, target: Tensor, log_scale: Tensor) -> Tensor:
    """Negative log-likelihood of the error under a Laplace distribution of the predicted scale.

    The error is taken as given: no gradient reaches the image, which would otherwise give up where it is unsure.
    """
    return ((image.detach() - target).abs() * torch.exp(-log_scale) + log_scale + math.log(2.0)).mean()


def blur_error(prediction: Prediction, blur_radius_px: Tensor) -> Tensor:
    """Error of the predicted blur radius, ``|log((r + 2 px) / (r0 + 2 px))|``: relative where blur is large.

    Samples of unknown blur are left out.
    """
    known = blur_radius_px.isfinite()
    wanted = torch.where(known, blur_radius_px, torch.zeros_like(blur_radius_px)).reshape(-1, 1, 1, 1)
    error = torch.log((prediction.blur_radius_px + 2.0) / (wanted + 2.0)).abs().flatten(1).mean(1)
    return (error * known).sum() / known.sum().clamp_min(1)


def lsgan_generator(score_of_refocused: Tensor) -> Tensor:
    """Least-squares adversarial loss of the generator (Mao et al. 2017)."""
    return 0.5 * (score_of_refocused - 1.0).square().mean()


def lsgan_discriminator(score_of_sharp: Tensor, score_of_refocused: Tensor) -> Tensor:
    """Least-squares adversarial loss of the discriminator."""
    return 0.5 * (score_of_sharp - 1.0).square().mean() + 0.5 * score_of_refocused.square().mean()


def _mse(image: Tensor, target: Tensor) -> Tensor:
    return (image - target).square().flatten(1).mean(1)
