import numpy as np
import pytest
from scipy import fft
from skimage import data

from refocus.errors import InputError
from refocus.model.consistency import check_consistency, noise_of, relative_transfer
from refocus.optics.settings import STANDARD_SYSTEM
from refocus.training.scenes import SceneSettings, SharpImage, defocus_kernel, scenes_of


def scene(defocus_um, photons=2000.0):
    settings = SceneSettings(defocus_um=(defocus_um,), photons=(photons,))
    return next(scenes_of([SharpImage(data.camera()[:340, :340][None], "cameraman", "fluorescence")], settings))


@pytest.mark.parametrize("defocus_um", [2.0, 4.0, 8.0])
def test_the_truth_explains_the_input_and_gives_its_blur(defocus_um):
    s = scene(defocus_um)
    found = check_consistency(s.image, s.truth, 0.8 * s.blur_radius_px)
    assert found.blur_radius_px == pytest.approx(s.blur_radius_px, rel=0.06)
    # What is left is noise, and light from beyond the rim that the truth does not hold.
    assert found.residual < 0.12
    assert found.noise_ratio < 2.0


def test_the_input_itself_explains_a_blurred_input_only_without_blur():
    s = scene(4.0)
    found = check_consistency(s.image, s.image, 0.0)
    assert found.blur_radius_px == 0
    assert found.residual == pytest.approx(0, abs=1e-4)


def test_an_invented_image_leaves_a_residual():
    s = scene(4.0)
    invented = s.truth[:, ::-1].copy()
    honest = check_consistency(s.image, s.truth, s.blur_radius_px).residual
    assert check_consistency(s.image, invented, s.blur_radius_px).residual > 5 * honest


def test_lost_light_leaves_a_residual():
    s = scene(4.0)
    honest = check_consistency(s.image, s.truth, s.blur_radius_px)
    dimmed = check_consistency(s.image, 0.8 * s.truth, s.blur_radius_px)
    assert dimmed.noise_ratio > 2 * honest.noise_ratio


def test_blur_is_that_of_the_two_dimensional_psf():
    # An independent computation: FFT of the PSF there, Hankel transforms of the pupil here.
    for defocus_um in (2.0, 6.0):
        kernel = defocus_kernel(STANDARD_SYSTEM, defocus_um, reach_px=80)
        theirs = fft.rfft2(np.fft.ifftshift(kernel)).real
        ours = relative_transfer(STANDARD_SYSTEM.blur_radius_px(defocus_um), kernel.shape, STANDARD_SYSTEM)
        low = np.hypot(fft.fftfreq(161)[:, None], fft.rfftfreq(161)) < 0.3
        # Pixel integration and the cut kernel differ by up to 0.01 where both are small.
        np.testing.assert_allclose(ours[low], theirs[low], atol=0.015)


def test_noise_is_seen_through_structure():
    smooth = np.add.outer(np.sin(np.arange(200) / 15), np.cos(np.arange(200) / 20)) * 100
    noisy = smooth + np.random.default_rng(0).normal(0, 3, smooth.shape)
    # 40 000 pixels know it to 1%; the structure's own second differences add a little.
    assert noise_of(noisy) == pytest.approx(3, rel=0.03)


def test_a_constant_image_is_explained_by_itself_alone():
    flat = np.full((32, 32), 7.0)
    assert check_consistency(flat, flat, 5.0).residual == 0
    assert check_consistency(flat, flat + 1, 5.0).residual == 1


def test_shapes_must_agree():
    with pytest.raises(InputError, match="one shape"):
        check_consistency(np.zeros((32, 32)), np.zeros((32, 31)), 1.0)
