"""Each measure against its formula written as loops, and against what noise and offsets do to it."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
from scipy import ndimage

from refocus.errors import ConfigurationError, InputError
from refocus.focus.measures import INTENSITY_POWER, MEASURES, SPECTRAL_BAND, measure_named

NAMES = list(MEASURES)
# What white noise of variance 1 adds to each on average, as the docstrings say.
NOISE_GAIN = {
    "vollath4": 0.0,
    "vollath5": 0.0,
    "standard_deviation": 1.0,
    "normalised_variance": 1.0 / 500.0,
    "brenner": 2.0,
    "tenengrad": 24.0,
    "laplacian_energy": 20.0,
    "spectral": math.pi * (SPECTRAL_BAND[1] ** 2 - SPECTRAL_BAND[0] ** 2),
}


def by_loops(name: str, image: np.ndarray) -> float:
    """The measure as its formula reads, pixel by pixel in Python's own floats."""
    rows, columns = image.shape
    i = [[float(value) for value in row] for row in image]
    mean = sum(map(sum, i)) / (rows * columns)
    j = [[value - mean for value in row] for row in i]
    at = [(y, x) for y in range(rows) for x in range(columns)]

    def average(terms: list[float]) -> float:
        return sum(terms) / len(terms)

    match name:
        case "vollath4":
            along_x = average([j[y][x] * (j[y][x + 1] - j[y][x + 2]) for y, x in at if x + 2 < columns])
            along_y = average([j[y][x] * (j[y + 1][x] - j[y + 2][x]) for y, x in at if y + 2 < rows])
            return (along_x + along_y) / 2
        case "vollath5":
            along_x = average([j[y][x] * j[y][x + 1] for y, x in at if x + 1 < columns])
            along_y = average([j[y][x] * j[y + 1][x] for y, x in at if y + 1 < rows])
            return (along_x + along_y) / 2
        case "standard_deviation":
            return math.sqrt(average([j[y][x] ** 2 for y, x in at]))
        case "normalised_variance":
            return average([j[y][x] ** 2 for y, x in at]) / mean
        case "brenner":
            along_x = average([(i[y][x + 2] - i[y][x]) ** 2 for y, x in at if x + 2 < columns])
            along_y = average([(i[y + 2][x] - i[y][x]) ** 2 for y, x in at if y + 2 < rows])
            return (along_x + along_y) / 2
        case "tenengrad":
            total = []
            for y, x in at:
                if 0 < y < rows - 1 and 0 < x < columns - 1:
                    gx = sum(w * (i[y + d][x + 1] - i[y + d][x - 1]) for d, w in ((-1, 1), (0, 2), (1, 1)))
                    gy = sum(w * (i[y + 1][x + d] - i[y - 1][x + d]) for d, w in ((-1, 1), (0, 2), (1, 1)))
                    total.append(gx**2 + gy**2)
            return average(total)
        case "laplacian_energy":
            return average(
                [
                    (i[y - 1][x] + i[y + 1][x] + i[y][x - 1] + i[y][x + 1] - 4 * i[y][x]) ** 2
                    for y, x in at
                    if 0 < y < rows - 1 and 0 < x < columns - 1
                ]
            )
        case "spectral":

            def hann(n: int, length: int) -> float:
                return 0.5 - 0.5 * math.cos(2 * math.pi * (n + 1) / (length + 1))

            window = {(y, x): hann(y, rows) * hann(x, columns) for y, x in at}
            power = 0.0
            for u, v in at:
                frequency_y = (u if u < (rows + 1) // 2 else u - rows) / rows
                frequency_x = (v if v < (columns + 1) // 2 else v - columns) / columns
                if SPECTRAL_BAND[0] <= math.hypot(frequency_y, frequency_x) < SPECTRAL_BAND[1]:
                    terms = (
                        window[y, x] * j[y][x] * cmath.exp(-2j * math.pi * (u * y / rows + v * x / columns))
                        for y, x in at
                    )
                    power += abs(sum(terms)) ** 2
            return power / (rows * columns * sum(value**2 for value in window.values()))
    raise AssertionError(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(9, 12), (10, 7)])
def test_a_measure_equals_its_formula_written_as_loops(name, shape):
    image = np.random.default_rng(3).random(shape) * 100 + 20
    assert MEASURES[name](image) == pytest.approx(by_loops(name, image), rel=1e-6)  # the Hann window is single


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", ">u2"])
def test_a_measure_is_the_same_in_every_dtype(name, dtype):
    image = np.random.default_rng(4).integers(0, 255, (33, 41))
    # Single precision: 24 bits, and sums of 1353 terms.
    assert MEASURES[name](image.astype(dtype)) == pytest.approx(MEASURES[name](image.astype(np.float64)), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_blur_lowers_a_measure_step_by_step(name):
    sharp = np.random.default_rng(5).random((96, 96)) > 0.9
    values = [MEASURES[name](ndimage.gaussian_filter(sharp.astype(float), sigma)) for sigma in (0.7, 1, 1.5, 2, 3)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"normalised_variance"}))
def test_an_offset_changes_nothing(name):
    image = np.random.default_rng(6).random((64, 64)).astype(np.float32) * 1000
    # Single precision leaves 1e-3 grey levels of 1e4.
    assert MEASURES[name](image + 10_000) == pytest.approx(MEASURES[name](image), rel=1e-4)


def test_an_offset_lowers_the_normalised_variance_by_what_it_adds_to_the_mean():
    image = np.random.default_rng(6).random((64, 64)) * 1000
    measure = MEASURES["normalised_variance"]
    assert measure(image + 700) * (image.mean() + 700) == pytest.approx(measure(image) * image.mean(), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_brighter_lamp_raises_a_measure_by_its_stated_power(name):
    image = np.random.default_rng(7).random((64, 64)) * 100
    assert MEASURES[name](3 * image) == pytest.approx(3 ** INTENSITY_POWER[name] * MEASURES[name](image), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_white_noise_adds_what_the_docstring_says(name):
    rng = np.random.default_rng(8)
    empty = np.full((256, 256), 500.0)
    values = [MEASURES[name](empty + rng.normal(size=empty.shape)) for _ in range(20)]
    # 20 images of 65536 pixels: a mean of products scatters by some 1e-3 of the noise's power, the Hann window's
    # fewer effective pixels and Sobel's larger gain triple that, and frequencies of the band come whole.
    assert np.mean(values) == pytest.approx(NOISE_GAIN[name], rel=0.02, abs=0.004)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_plane_measures_nothing(name):
    assert MEASURES[name](np.full((32, 32), 1234, np.uint16)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_columns_count_alike(name):
    image = ndimage.gaussian_filter1d(np.random.default_rng(9).random((64, 64)), 2, axis=0)
    assert MEASURES[name](image.T) == pytest.approx(MEASURES[name](image), rel=1e-5)  # the Hann window is single


@pytest.mark.parametrize(
    "image",
    [np.zeros((2, 9)), np.zeros((9, 9, 3)), np.zeros((9, 9), complex), np.full((9, 9), np.nan), np.zeros(0)],
    ids=["too small", "colour", "complex", "nan", "empty"],
)
def test_what_is_no_grey_plane_is_refused(image):
    with pytest.raises(InputError, match="expected"):
        MEASURES["vollath4"](image)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="vollath4"):
        measure_named("vollath6")
