from collections import Counter

import pytest

from refocus.data.splits import SPLITS, is_image, specimen_of, split_of, stem_of
from refocus.errors import ConfigurationError


def test_a_specimen_keeps_its_split_for_ever():
    # Changing one of these would move specimens that old models were trained on into validation.
    assert split_of("a") == "calibration"
    assert split_of("slide1") == "train"
    assert split_of("mitochondria_lightsheet") == "train"


def test_splits_have_their_shares():
    counts = Counter(split_of(f"specimen {i}") for i in range(10_000))
    # Binomial standard deviation is 40 for the large share and 30 for the small ones: 4 of them.
    assert abs(counts["train"] - 8000) < 160
    assert abs(counts["validation"] - 1000) < 120
    assert abs(counts["calibration"] - 1000) < 120
    assert set(counts) == set(SPLITS)


@pytest.mark.parametrize(
    ("key", "stem"),
    [
        ("raw/a/s3.ome.tif", "s3"),
        ("raw/a/s3.TIFF", "s3"),
        ("raw/a/plate.7.png", "plate.7"),
        ("raw/a/plate.ome.zarr/", "plate"),
    ],
)
def test_stem_drops_image_suffixes_only(key, stem):
    assert stem_of(key) == stem


@pytest.mark.parametrize(
    ("first", "second"),
    [("_c0", "_c1"), ("_C1", "_C2"), ("_ch00", "_ch01"), ("_CH1", "_CH2"), ("_w1", "_w2"), ("_w1DAPI", "_w2GFP488")],
)
def test_channels_of_one_field_are_one_specimen(first, second):
    for number in range(100):
        field = f"Field_{number}"
        assert specimen_of(f"raw/cells/{field}{first}.tif") == specimen_of(f"raw/cells/{field}{second}.tif") == field


@pytest.mark.parametrize(
    "name", ["s1_t2", "plate_w", "cells_chip3", "slide_c", "a_w1-002", "wt_c1_s2", "dapi_widefield"]
)
def test_what_only_looks_like_a_channel_stays_in_the_name(name):
    assert specimen_of(f"raw/{name}.tif") == name


def test_what_simulation_alone_knows_is_no_image():
    assert is_image("raw/a/series.ome.tif")
    assert is_image("raw/a/PHOTO.JPEG")
    assert not is_image("raw/a/series.truth.ome.tif")
    assert is_image("raw/plate.truth.2024/a.tif")
    assert not is_image("raw/a/acquisition.yaml")


def test_a_pattern_names_the_slide():
    assert specimen_of("raw/slide7_tile3.tif", r"(slide\d+)_.*") == "slide7"


@pytest.mark.parametrize(
    ("pattern", "specimen"),
    [(".*/(.+)/.+", "A01"), (".*/(.+/.+)", "A01/img_001"), (".*/(plate[^/]+)/.+", "plate7")],
)
def test_a_pattern_with_a_slash_sees_the_folders(pattern, specimen):
    assert specimen_of("raw/plate7/A01/img_001.ome.tif", pattern) == specimen


def test_a_pattern_with_a_slash_that_fits_the_stem_sees_no_folders():
    assert specimen_of("raw/plate7/slide3_t4.tif", r"([^/]+)_t\d+") == "slide3"


@pytest.mark.parametrize("pattern", ["slide", "(", r"(plate\d+)_.*", "(x?).*"])
def test_a_pattern_that_finds_nothing_is_refused(pattern):
    with pytest.raises(ConfigurationError, match="pattern"):
        specimen_of("raw/slide7_tile3.tif", pattern)
