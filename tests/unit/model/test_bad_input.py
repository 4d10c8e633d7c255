"""What people send by mistake or from odd cameras, through the weights that ship: refused in words, or harmless."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from refocus.errors import InputError, ModelUnfit, UnsupportedImage
from refocus.model.abstain import RangeGate
from refocus.model.checkpoint import ModelPackage, bundled_names
from refocus.model.consistency import check_consistency
from refocus.model.restore import LoadedModel


@pytest.fixture(scope="module", params=bundled_names())
def model(request):
    return LoadedModel(ModelPackage.bundled(request.param), device="cpu")


def spots(*shape, dtype="uint16", level=400.0, seed=0):
    """Spots of a few pixels on a background, with shot noise."""
    rng = np.random.default_rng(seed)
    light = ndimage.gaussian_filter(rng.gamma(0.2, 5.0, shape), [1.5 * (s > 5) for s in shape], mode="wrap")
    return rng.poisson(level * (0.2 + light)).clip(0, 16 * level).astype(dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_pixel_that_is_no_number_is_refused_wherever_it_is(model, bad):
    # Larger than what the normalisation samples: the bad pixel lies between its grid's points.
    image = np.ones((2101, 2003), np.float32)
    image[1001, 1777] = bad
    with pytest.raises(UnsupportedImage, match=rf"1 of {image.size} pixels are NaN or infinite"):
        model.restore(image)


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_a_constant_image_comes_back_as_it_is(model, value):
    image = np.full((70, 90), value, np.uint16)
    found = model.restore(image, with_scale=True)
    np.testing.assert_array_equal(found.pixels, image)
    assert not found.scale.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (17, 17), (17, 400), (2, 2)])
def test_images_of_a_pixel_or_of_seventeen_keep_shape_and_range(model, shape):
    image = spots(*shape)
    found = model.restore(image, with_scale=True)
    assert found.pixels.shape == image.shape
    assert found.pixels.dtype == image.dtype
    assert np.isfinite(found.scale).all()
    half = model.package.config.calibration.half_width_of(
        found.scale, found.blur_radius_px, stride_px=found.stride_px, axes="YX"
    )
    assert half.shape == image.shape
    # Nothing is invented far outside of what was seen.
    assert float(found.pixels.max()) <= 3 * float(image.max())
    judged = np.zeros(shape, bool)
    for verdict in RangeGate.shipped().judge(image):
        judged[verdict.slices] = True
    assert judged.all()


def test_two_channels_are_two_images_and_four_samples_are_refused(model):
    image = spots(2, 48, 50)
    image[1] *= 3
    together = model.restore(image, axes="CYX")
    for channel, plane in enumerate(image):
        np.testing.assert_array_equal(together.pixels[channel], model.restore(plane).pixels)
    for samples in (2, 4):
        with pytest.raises(ModelUnfit, match=f"{samples} colour samples"):
            model.restore(spots(48, 50, samples), axes="YXS")


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "int32", "float16", "float32", "float64"])
def test_every_number_type_gives_the_image_of_16_bits(model, dtype):
    image = spots(64, 64, level=30.0).clip(0, 250)
    expected = model.restore(image).pixels.astype(float)
    found = model.restore(image.astype(dtype))
    assert found.pixels.dtype == dtype
    # Rounding to integers at the end, and bf16 in between over 250 levels: float16 itself keeps 0.1 there.
    np.testing.assert_allclose(found.pixels.astype(float), expected, atol=2.0)


@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_the_unit_of_intensity_does_not_matter(model, unit):
    image = spots(64, 64, dtype="float64")
    found = model.restore(image * unit).pixels / unit
    # Two percentiles in another unit differ by rounding, which bf16 may turn into its own: 2^-8 of the range.
    np.testing.assert_allclose(found, model.restore(image).pixels, atol=np.ptp(image) / 256)


def test_values_below_zero_are_kept_where_the_input_has_them(model):
    image = spots(64, 64, dtype="float32") - 500
    found = model.restore(image).pixels
    assert found.min() < 0
    np.testing.assert_allclose(found.mean(), image.mean(), atol=0.02 * np.ptp(image))


def test_a_single_hot_pixel_does_not_spread(model):
    image = np.full((96, 96), 100, np.uint16)
    image[40, 50] = 60000
    found = model.restore(image).pixels.astype(float)
    beside = np.ones(image.shape, bool)
    beside[36:45, 46:55] = False
    # One and a half percent of the pixel's height; 1.07 with the present fluorescence weights.
    assert np.abs(found[beside] - 100).max() < 900


def test_a_consistency_check_of_what_does_not_fit_is_refused():
    for image, restored in ((np.ones((20, 20)), np.ones((20, 21))), (np.ones((8, 8)), np.ones((8, 8)))):
        with pytest.raises(InputError, match="expected one shape"):
            check_consistency(image, restored, 3.0)
