"""Losses against closed forms and an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from refocus.model import losses
from refocus.model.metrics import ssim as ssim_of_metrics
from refocus.model.networks import Prediction


def _random(seed: int, side: int = 96) -> torch.Tensor:
    return torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(seed))


def test_log_mse_weighs_decibels_alike() -> None:
    target = torch.zeros(2, 1, 8, 8)
    image = torch.stack([torch.full((1, 8, 8), 0.1), torch.full((1, 8, 8), 0.01)])
    # ln(0.1) and ln(0.01), the floor of 1e-6 raising the second by half of ln(1.01).
    assert float(losses.log_mse(image, target)) == pytest.approx(0.5 * (math.log(0.1) + math.log(0.01)), abs=3e-3)


def test_berhu_is_absolute_below_its_threshold_and_squared_above() -> None:
    target = torch.tensor([0.0, 2.0] * 8).reshape(1, 1, 4, 4)
    threshold = 0.2 * float(target.std())
    small = losses.berhu(target + 0.5 * threshold, target)
    large = losses.berhu(target + 3.0 * threshold, target)
    assert float(small) == pytest.approx(0.5 * threshold, rel=1e-5)
    assert float(large) == pytest.approx((9 + 1) / 2 * threshold, rel=1e-5)


def test_ssim_agrees_with_the_evaluations_own() -> None:
    target = _random(0)[:1]
    image = (target + 0.1 * _random(1)[:1]).clamp(0, 1)
    ours = float(losses.ms_ssim(image, target)[0])
    theirs = ssim_of_metrics(image[0, 0].numpy().astype(np.float64), target[0, 0].numpy().astype(np.float64))
    # The same window; theirs may treat the rim differently, which is a fifth of 96 px.
    assert ours == pytest.approx(theirs, abs=0.02)


def test_identical_images_are_perfectly_alike() -> None:
    fine, all_scales = losses.ms_ssim(_random(2), _random(2))
    assert float(fine) == pytest.approx(1.0, abs=1e-5)
    assert float(all_scales) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("side", [8, 11, 40, 200])
def test_ms_ssim_of_opposites_and_of_constants_has_finite_gradients(side: int) -> None:
    target = _random(3, side)
    for image in (1 - target, torch.zeros_like(target), torch.full_like(target, 5.0)):
        image = image.clone().requires_grad_()
        fine, all_scales = losses.ms_ssim(image, target)
        torch.autograd.backward(fine + all_scales)
        assert image.grad is not None
        assert image.grad.isfinite().all()


def test_what_was_measured_first_can_be_trained_by_later() -> None:
    image = _random(2, side=53)
    with torch.inference_mode():
        measured = losses.ms_ssim(image, 0.5 * image)[1]
    image.requires_grad_()
    trained = losses.ms_ssim(image, 0.5 * image.detach())[1]
    trained.backward()
    assert image.grad is not None
    assert float(trained) == float(measured)


def test_light_is_the_relative_error_of_the_mean() -> None:
    target = torch.full((1, 1, 4, 4), 0.5)
    assert float(losses.light(1.1 * target, target)) == pytest.approx(0.1, rel=1e-5)


def test_laplace_likelihood_is_best_at_the_true_scale_and_leaves_the_image_alone() -> None:
    error = torch.distributions.Laplace(0.0, 0.3).sample((1, 1, 200, 200))
    image = torch.zeros_like(error).requires_grad_()
    found = [float(losses.laplace_nll(image, error, torch.full_like(error, math.log(b)))) for b in (0.2, 0.3, 0.45)]
    assert found[1] < min(found[0], found[2])
    scale = torch.zeros_like(error).requires_grad_()
    torch.autograd.backward(losses.laplace_nll(image, error, scale))
    assert image.grad is None


def test_unknown_blur_is_left_out() -> None:
    prediction = Prediction(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), torch.full((2, 1, 2, 2), 6.0))
    known = losses.blur_error(prediction, torch.tensor([2.0, float("nan")]))
    assert float(known) == pytest.approx(math.log(8 / 4))
    assert float(losses.blur_error(prediction, torch.full((2,), float("nan")))) == 0.0


def test_fourier_term_of_a_wave_sees_only_that_wave() -> None:
    target = torch.zeros(1, 1, 64, 64)
    x = torch.arange(64.0)
    image = torch.cos(2 * math.pi * 8 * x / 64).expand(1, 1, 64, 64)
    assert float(losses.fourier(image, target)) > 0
    assert float(losses.fourier(target, target)) == 0


def test_adversarial_losses_have_their_minima_where_they_should() -> None:
    ones, zeros = torch.ones(3), torch.zeros(3)
    assert float(losses.lsgan_generator(ones)) == 0
    assert float(losses.lsgan_discriminator(ones, zeros)) == 0
    assert float(losses.lsgan_discriminator(zeros, ones)) == pytest.approx(1.0)


def test_harm_counts_only_what_was_made_worse() -> None:
    target = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    given = target + 0.1
    better, worse = target + 0.05, target + 0.2
    assert losses.harm(better, target, given) == 0.0
    # One of two samples has twice the error: half of log 2, over two. The floor under the squares takes its 1e-4.
    one = torch.cat([worse[:1], better[1:]])
    torch.testing.assert_close(losses.harm(one, target, given), torch.tensor(math.log(2.0) / 2), atol=1e-3, rtol=0)
