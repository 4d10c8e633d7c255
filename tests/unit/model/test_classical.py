import numpy as np
import pytest
from scipy.signal import fftconvolve
from skimage import data
from skimage.restoration import richardson_lucy as skimage_richardson_lucy

from refocus.errors import InputError
from refocus.model.classical import (
    UnsharpSetting,
    WienerFilter,
    WienerSetting,
    richardson_lucy,
    unsharp_mask,
    wiener,
)
from refocus.model.metrics import psnr


def disc(radius):
    reach = int(radius) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    psf = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1)
    return (psf / psf.sum()).astype(np.float32)


@pytest.fixture(scope="module")
def field():
    """A sharp field and what a camera sees of its centre: light from outside the image is in it."""
    sharp = data.camera()[50:290, 120:360].astype(np.float32)
    psf = disc(4)
    blurred = fftconvolve(sharp, psf, mode="same")[40:200, 40:200]
    noisy = np.random.default_rng(0).poisson(np.clip(blurred, 0, None) * 8) / 8
    return noisy.astype(np.float32), sharp[40:200, 40:200], psf


def test_both_methods_restore_what_the_camera_sees(field):
    image, sharp, psf = field
    before = psnr(image, sharp)
    assert psnr(wiener(image, psf, WienerSetting(0.01, "gradient")), sharp) > before + 2.5
    assert psnr(richardson_lucy(image, psf, [30])[30], sharp) > before + 2.5


def test_the_rim_is_restored_too(field):
    image, sharp, psf = field
    rim = np.ones(sharp.shape, bool)
    rim[8:-8, 8:-8] = False
    span = sharp.max() - sharp.min()
    restored = {
        "wiener": wiener(image, psf, WienerSetting(0.01, "gradient")),
        "rl": richardson_lucy(image, psf, [30])[30],
    }
    for name, estimate in restored.items():
        # A Wiener filter over mirrored rims falls 10 dB below its input there; gains are 2.5 and 2.8 dB as built.
        at_rim = psnr(estimate[rim][None], sharp[rim][None], range_of_data=span)
        as_it_came = psnr(image[rim][None], sharp[rim][None], range_of_data=span)
        assert at_rim > as_it_came + 1.5, name


def test_richardson_lucy_agrees_with_scikit_image_away_from_the_rim():
    rng = np.random.default_rng(1)
    image = rng.uniform(0.2, 1.0, (96, 96)).astype(np.float32)
    psf = disc(2)
    theirs = skimage_richardson_lucy(image, psf, num_iter=5, clip=False, filter_epsilon=None)
    ours = richardson_lucy(image, psf, [5])[5]
    # scikit-image starts from a constant image, ours from the blurred one, which saves it a few steps.
    inner = slice(30, 66)
    ours, theirs = (fftconvolve(e, psf, mode="same")[inner, inner] for e in (ours, theirs))
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95


def test_one_run_gives_every_iteration_asked_for(field):
    image, _, psf = field
    together = richardson_lucy(image, psf, [1, 4])
    assert set(together) == {1, 4}
    np.testing.assert_array_equal(together[4], richardson_lucy(image, psf, [4])[4])


@pytest.mark.parametrize("setting", [WienerSetting(0.1, "white"), WienerSetting(0.01, "gradient")])
def test_light_is_conserved(field, setting):
    image, _, psf = field
    # What the mirror adds beyond the rim leaks back by a few tenths of a percent.
    assert wiener(image, psf, setting).mean() == pytest.approx(image.mean(), rel=0.01)
    assert richardson_lucy(image, psf, [10])[10].mean() == pytest.approx(image.mean(), rel=0.01)
    assert unsharp_mask(image, UnsharpSetting(2, 1)).mean() == pytest.approx(image.mean(), rel=1e-3)


def test_a_point_as_psf_leaves_the_image_alone(field):
    image, _, _ = field
    point = np.zeros((9, 9), np.float32)
    point[4, 4] = 1
    # float32 transforms of values up to 255 err by about 1e-4.
    np.testing.assert_allclose(wiener(image, point, WienerSetting(0.0, "white")), image, atol=1e-3)
    np.testing.assert_allclose(richardson_lucy(image, point, [3])[3], image, atol=2e-3)


def test_colours_are_restored_each_with_its_own_psf(field):
    image, _, psf = field
    other = disc(3)
    other = np.pad(other, (psf.shape[0] - other.shape[0]) // 2)
    setting = WienerSetting(0.01, "white")
    both = wiener(np.stack([image, image]), np.stack([psf, other]), setting)
    np.testing.assert_allclose(both[0], wiener(image, psf, setting), atol=1e-3)
    np.testing.assert_allclose(both[1], wiener(image, other, setting), atol=1e-3)
    assert richardson_lucy(np.stack([image, image]), psf, [2])[2].shape == (2, *image.shape)


def test_a_filter_serves_many_settings(field):
    image, _, psf = field
    shared = WienerFilter(image, psf)
    for balance in (0.01, 0.1):
        setting = WienerSetting(balance, "white")
        np.testing.assert_array_equal(shared(setting), wiener(image, psf, setting))


def test_a_psf_that_loses_light_is_refused(field):
    image, _, psf = field
    with pytest.raises(InputError, match="sums to"):
        wiener(image, 0.5 * psf, WienerSetting(0.01, "white"))
    with pytest.raises(InputError, match="positive"):
        richardson_lucy(image, psf, [])
    with pytest.raises(InputError, match="one a channel"):
        wiener(np.stack([image] * 3), np.stack([psf] * 2), WienerSetting(0.01, "white"))
