import numpy as np
import pytest
import torch
from scipy import fft
from skimage import data

from refocus.errors import InputError
from refocus.optics.random_defocus import OpticsRange, RandomDefocus
from refocus.optics.settings import STANDARD_SYSTEM
from refocus.training.scenes import SceneSettings, SharpImage, defocus_kernel, scenes_of


def sharp(name="cell", side=300, channels=1):
    pixels = data.camera()[:side, :side]
    return SharpImage(np.repeat(pixels[None], channels, 0), name, "brightfield" if channels == 3 else "fluorescence")


def test_scenes_repeat_in_any_order():
    settings = SceneSettings(defocus_um=(0, 4), photons=(1000,), seed=3)
    forward = {(s.specimen, s.defocus_um): s.image for s in scenes_of([sharp("a"), sharp("b")], settings)}
    backward = {(s.specimen, s.defocus_um): s.image for s in scenes_of([sharp("b"), sharp("a")], settings)}
    assert forward.keys() == backward.keys()
    for key, image in forward.items():
        np.testing.assert_array_equal(image, backward[key])
    other = next(scenes_of([sharp("a")], settings.model_copy(update={"seed": 4})))
    assert not np.array_equal(other.image, forward["a", 0.0])


def test_in_focus_scene_is_the_truth_with_the_camera_noise():
    scene = next(scenes_of([sharp()], SceneSettings(defocus_um=(0,), photons=(1000,))))
    peak = 255.0
    expected = np.sqrt(scene.truth.mean() / peak * 1000 + 1.6**2) * peak / 1000
    # Clipping at zero and 65 000 pixels leave the noise known to 2%; the peak of 4 x 4 means lies just below 255.
    assert float((scene.image - scene.truth).std()) == pytest.approx(expected, rel=0.04)


def test_light_is_conserved_at_every_depth():
    flat = np.full((1, 300, 300), 100, np.uint8)
    flat[0, 150, 150] = 101
    for scene in scenes_of([SharpImage(flat, "flat", "fluorescence")], SceneSettings(photons=(100000,))):
        # Noise of the mean over 220^2 pixels is below 0.01%; kernels are cut at a hundredth of their width.
        assert scene.image.mean() == pytest.approx(100, rel=5e-4)


def test_blur_agrees_with_the_simulation_that_trains():
    scene = next(scenes_of([sharp(side=400)], SceneSettings(defocus_um=(6,), photons=(1e8,), field_px=256)))
    one = STANDARD_SYSTEM
    radius = one.blur_radius_px(6)
    exact = OpticsRange(
        numerical_aperture=(0.75, 0.75),
        wavelength_um=(0.525, 0.525),
        pixel_size_um=(0.325, 0.325),
        blur_radius_px=(radius, radius),
        in_focus_share=0,
        near_focus_share=0,
        spherical_waves=0,
        tilt_share=0,
        haze_share=0,
        vignetting_share=0,
        background_share=0,
        read_noise_electrons=(0, 0),
        offset=(0, 0),
        saturation_share=0,
        photons_at_peak=(1e8, 1e8),
        bit_depths=(16,),
    )
    # Both blur an image that is mirrored at its rim.
    blur = RandomDefocus(exact, crop_px=256)
    theirs = blur(torch.from_numpy(scene.truth[None]), seeds=torch.tensor([1])).image[0].numpy()
    inner = slice(60, 196)
    truth_change = np.abs(scene.image - scene.truth)[0, inner, inner].mean()
    difference = np.abs(scene.image - theirs)[0, inner, inner].mean()
    # Transfer functions differ by up to 0.003: pixels blur the PSF here, not there, and 1% of the light lies beyond
    # the kernel's reach.
    assert difference < 0.04 * truth_change


def test_kernel_is_a_point_in_focus_and_a_disc_far_from_it():
    point = defocus_kernel(STANDARD_SYSTEM, 0.0, reach_px=10)
    assert point[10, 10] == 1
    assert point.sum() == 1
    kernel = defocus_kernel(STANDARD_SYSTEM, 8.0, reach_px=50)
    radius = np.hypot(*np.mgrid[-50:51, -50:51])
    inside = kernel[radius <= STANDARD_SYSTEM.blur_radius_px(8.0) + 2].sum()
    assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
    # Geometric optics keeps all light within the radius; diffraction lets a few percent out.
    assert inside > 0.95


def test_relative_blur_never_amplifies():
    for defocus_um in (0.5, 2.0, 6.0):
        kernel = defocus_kernel(STANDARD_SYSTEM, defocus_um, reach_px=40)
        # Cutting the kernel at a finite reach adds a few parts in ten thousand.
        assert np.abs(fft.rfft2(kernel)).max() < 1.001


def test_colours_blur_by_their_wavelengths():
    scene = next(iter(scenes_of([sharp(channels=3)], SceneSettings(defocus_um=(2,), photons=(1000,)))))
    assert scene.psf.shape[0] == 3
    assert not np.array_equal(scene.psf[0], scene.psf[2])


def test_light_comes_from_outside_the_field():
    image = np.zeros((1, 300, 300), np.uint8)
    image[0, :, :20] = 200
    image[0, 100:200, 100:200] = 50
    scene = next(scenes_of([SharpImage(image, "s", "fluorescence")], SceneSettings(defocus_um=(8,), photons=(1e6,))))
    assert scene.truth[0, :5, :3].max() == 0
    assert scene.image[0, :, :3].mean() > 5


def test_small_images_are_tested_whole():
    scene = next(scenes_of([sharp(side=120)], SceneSettings(photons=(1000,))))
    assert scene.truth.shape == (1, 120, 120)


@pytest.mark.parametrize("pixels", [np.zeros((64, 64)), np.zeros((1, 8, 64))])
def test_images_of_another_shape_are_refused(pixels):
    with pytest.raises(InputError, match="expected"):
        SharpImage(pixels, "s", "fluorescence")


@pytest.mark.parametrize(("value", "said"), [(1.0, "constant"), (np.nan, "4096 pixels of 4096 that are NaN")])
def test_an_image_that_shows_nothing_is_refused(value, said):
    with pytest.raises(InputError, match=said):
        SharpImage(np.full((1, 64, 64), value), "s", "fluorescence")
