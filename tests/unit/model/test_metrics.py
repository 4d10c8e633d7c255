import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from refocus.errors import InputError
from refocus.model.metrics import (
    frc_resolution_px,
    ms_ssim,
    nrmse,
    pearson,
    psnr,
    ring_correlation,
    signal_ratio,
    ssim,
)


@pytest.fixture(scope="module")
def truth():
    return data.camera()[100:356, 100:356].astype(np.float32)


@pytest.fixture(scope="module")
def noisy(truth):
    return truth + np.random.default_rng(0).normal(0, 12, truth.shape).astype(np.float32)


def test_psnr_agrees_with_scikit_image(truth, noisy):
    span = float(truth.max() - truth.min())
    # Both compute in float64; only summation order differs.
    assert psnr(noisy, truth) == pytest.approx(peak_signal_noise_ratio(truth, noisy, data_range=span), abs=1e-4)


def test_psnr_of_a_constant_error_has_its_closed_form():
    truth = np.array([[0.0, 10.0], [0.0, 10.0]])
    assert psnr(truth + 1, truth) == pytest.approx(20.0)
    assert nrmse(truth + 1, truth) == pytest.approx(0.1)


def test_identical_images_have_a_finite_score(truth):
    assert psnr(truth, truth) == 100.0
    assert ssim(truth, truth) == pytest.approx(1.0)
    assert ms_ssim(truth, truth) == pytest.approx(1.0)


def test_no_metric_but_correlation_forgives_a_gain(truth):
    assert pearson(2 * truth + 5, truth) == pytest.approx(1.0)
    assert psnr(1.2 * truth, truth) < 30
    assert ssim(1.2 * truth, truth) < 0.99
    assert signal_ratio(1.2 * truth, truth) == pytest.approx(1.2)


def test_ssim_agrees_with_scikit_image(truth, noisy):
    span = float(truth.max() - truth.min())
    theirs = structural_similarity(
        truth.astype(np.float64),
        noisy.astype(np.float64),
        data_range=span,
        gaussian_weights=True,
        use_sample_covariance=False,
    )
    assert ssim(noisy, truth) == pytest.approx(theirs, abs=1e-9)


def test_ms_ssim_agrees_with_torchmetrics(truth, noisy):
    span = float(truth.max() - truth.min())
    theirs = multiscale_structural_similarity_index_measure(
        torch.from_numpy(noisy)[None, None], torch.from_numpy(truth)[None, None], data_range=span, sigma=1.5
    )
    # torchmetrics computes in float32 and pads the rim that is left out here.
    assert ms_ssim(noisy, truth) == pytest.approx(float(theirs), abs=2e-3)


def test_scores_do_not_depend_on_the_unit_of_intensity(truth, noisy):
    for metric in (psnr, ssim, ms_ssim, nrmse, pearson):
        assert metric(noisy * 256 + 7, truth * 256 + 7) == pytest.approx(metric(noisy, truth), rel=2e-3)


def test_colours_count_alike(truth, noisy):
    pair = np.stack([noisy, truth])
    both = ssim(pair, np.stack([truth, truth]))
    assert both == pytest.approx((ssim(noisy, truth) + 1) / 2)


def band_limited(cutoff, seed=0, side=256):
    """White noise whose spectrum ends at `cutoff` cycles per pixel."""
    spectrum = np.fft.fft2(np.random.default_rng(seed).normal(size=(side, side)))
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    return np.fft.ifft2(spectrum * (radius < cutoff)).real


def test_ring_correlation_finds_the_band_limit():
    signal = band_limited(0.2)
    rng = np.random.default_rng(1)
    noise = 0.05 * signal.std()
    first, second = (signal + rng.normal(0, noise, signal.shape) for _ in range(2))
    # The taper leaks one ring outwards, averaging over 3 rings another, rounding to rings half of one.
    assert 1 / frc_resolution_px(first, second) == pytest.approx(0.2, abs=2.5 / 256)


def test_both_thresholds_cross_at_the_same_signal_to_noise_ratio():
    # Signal falls with frequency, noise is white: the ratio passes 1/6 somewhere in the middle.
    side = 384
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    crossings = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        signal = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * np.exp(-(radius**2) / (2 * 0.1**2))).real
        first, second = (signal + rng.normal(0, 0.25, signal.shape) for _ in range(2))
        crossings.append(
            (1 / frc_resolution_px(first, second), 1 / frc_resolution_px(first, signal, second_is_truth=True))
        )
    between, against_truth = np.mean(crossings, axis=0)
    # exp(-r^2 / 0.1^2) = 0.25^2 / 6 at r = 0.214.
    assert against_truth == pytest.approx(0.214, abs=0.01)
    # A ring at r = 0.2 of 384 px holds 480 independent numbers: its correlation is known to 0.045, the crossing to 3%.
    assert between == pytest.approx(against_truth, rel=0.06)


def test_blur_alone_does_not_fool_the_truth_correlation():
    signal = band_limited(0.45)
    rng = np.random.default_rng(2)
    radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256))
    blurred = np.fft.ifft2(np.fft.fft2(signal) * np.exp(-(radius**2) / (2 * 0.08**2))).real
    noise = rng.normal(0, 0.02 * signal.std(), signal.shape)
    sharp = frc_resolution_px(signal + noise, signal, second_is_truth=True)
    soft = frc_resolution_px(blurred + noise, signal, second_is_truth=True)
    assert soft > 1.3 * sharp


def test_noise_alone_has_no_resolution(truth):
    noise = np.random.default_rng(3).normal(size=truth.shape)
    curve = ring_correlation(noise, truth, second_is_truth=True)
    assert curve.resolution_px is None


def test_resolution_ends_at_the_sampling_limit(truth):
    assert frc_resolution_px(truth, truth) == 2.0


@pytest.mark.parametrize(
    ("image", "truth", "says"),
    [
        (np.zeros((8, 8)), np.zeros((8, 9)), "one shape"),
        (np.full((8, 8), np.nan), np.eye(8), "NaN"),
        (np.zeros((8, 8)), np.zeros((8, 8)), "constant"),
        (np.zeros((0, 8)), np.zeros((0, 8)), "no pixels"),
    ],
)
def test_what_cannot_be_compared_is_refused(image, truth, says):
    with pytest.raises(InputError, match=says):
        psnr(image, truth)


def test_small_images_are_refused_where_windows_do_not_fit():
    small = np.eye(10)
    with pytest.raises(InputError, match="11 x 11"):
        ssim(small, small)
    with pytest.raises(InputError, match="176"):
        ms_ssim(np.eye(175), np.eye(175))
    with pytest.raises(InputError, match="16 x 16"):
        ring_correlation(small, small)
