"""Padding, scale bars and hot pixels reach no training: cut off, continued, or their tiles left out."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from refocus.data import series as series_module
from refocus.data.manifest import IngestSettings
from refocus.data.pairing import Pair, Pairing
from refocus.data.series import Series
from refocus.data.survey import survey
from refocus.errors import UnsupportedImage
from refocus.focus.measures import DEFAULT_MEASURE
from refocus.io.grid import Window
from refocus.io.microscopy import open_image
from samples import tiff

SIDE = 320


def read(pixels: np.ndarray, **options) -> Series:
    return Series(open_image(tiff(pixels, **options), name="cells.tif"), "cells.tif")


def framed(planes: np.ndarray) -> np.ndarray:
    """What aligning leaves: rims without light."""
    made = planes.copy()
    made[..., :30, :] = made[..., -17:] = 0
    return made


def with_scale_bar(planes: np.ndarray) -> np.ndarray:
    made = planes.copy()
    made[..., -30:-22, -140:-20] = 65535
    return made


def whole(series: Series) -> Window:
    return Window(0, 0, series.height_px, series.width_px)


def cells(seed: int = 0) -> np.ndarray:
    """Discs of all sizes on a ground, sharp, with noise, uint16, shape (SIDE, SIDE)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    clean = np.full((SIDE, SIDE), 300.0)
    for _ in range(60):
        (cy, cx), radius = rng.uniform(0, SIDE, 2), rng.uniform(3, 22)
        clean[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.uniform(800, 3000)
    return rng.poisson(ndimage.gaussian_filter(clean, 0.8)).astype(np.uint16)


def through_focus(planes: int, best: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    blurred = [ndimage.gaussian_filter(cells().astype(float), 0.9 * abs(z - best)) for z in range(planes)]
    return (np.stack(blurred) + rng.normal(0, 15, (planes, SIDE, SIDE))).clip(1).astype(np.uint16)


@pytest.fixture
def image() -> np.ndarray:
    return cells(3)


def test_an_image_without_blanks_comes_as_it_is(image):
    series = read(image)
    assert (series.blanks.said, series.in_file(whole(series))) == ("", Window(0, 0, SIDE, SIDE))
    np.testing.assert_array_equal(series.read(0, whole(series)), image)


def test_blank_rims_are_cut_off_with_what_is_mixed_with_them(image):
    series = read(framed(image))
    # Two pixels beside a rim may be interpolated with it.
    assert series.in_file(whole(series)) == Window(32, 0, SIDE - 32, SIDE - 19)
    assert series.blanks.said == "level 0"
    np.testing.assert_array_equal(series.read(0, whole(series)), image[32:, :-19])
    assert series.thinned(0).min() > 0


def test_the_specimen_is_continued_over_a_scale_bar_and_nothing_else_is_touched(image):
    series = read(with_scale_bar(image))
    seen = series.read(0, whole(series))
    touched = seen != with_scale_bar(image)
    # The bar is 8 x 120 px; two pixels around it may be mixed with it.
    assert touched.sum() <= 12 * 124
    assert touched[-32:-20, -142:-18].sum() == touched.sum()
    assert seen.dtype == np.uint16
    assert seen[-30:-22, -140:-20].max() <= image.max()
    assert series.blanks.share(Window(SIDE - 64, SIDE - 160, 64, 160)) == pytest.approx(12 * 124 / (64 * 160))
    assert series.blanks.share(Window(0, 0, 64, 64)) == 0


def test_hot_pixels_are_continued_over(image):
    rng = np.random.default_rng(0)
    hot = ndimage.gaussian_filter(image.astype(float), 3).astype(np.uint16)
    y, x = rng.integers(5, SIDE - 5, (2, 40))
    hot[y, x] = 65535
    series = read(hot)
    assert "hot or dead" in series.blanks.said
    assert series.read(0, whole(series)).max() < 4000


def test_colours_are_continued_together():
    colours = np.stack([cells(seed) >> 4 for seed in range(3)], axis=-1).astype(np.uint8)
    colours[:40] = 255
    colours[100:110, 100:200] = 255
    sink = io.BytesIO()
    tifffile.imwrite(sink, colours, photometric="rgb")
    series = Series(open_image(sink.getvalue(), name="section.tif"), "section.tif")
    assert series.in_file(whole(series)) == Window(42, 0, SIDE - 42, SIDE)
    seen = series.read(0, whole(series))
    assert seen.shape == (SIDE - 42, SIDE, 3)
    assert (seen[60:66, 104:196] < 255).any(-1).all()


@pytest.mark.parametrize("planes", [1, 5])
@pytest.mark.parametrize("paint", [framed, with_scale_bar, lambda planes: framed(with_scale_bar(planes))])
def test_planes_too_large_to_be_held_are_seen_alike(planes, paint: Callable, monkeypatch):
    painted = paint(through_focus(planes, best=planes // 2))
    pixels = painted if planes > 1 else painted[0]
    held = read(pixels)
    monkeypatch.setattr(series_module, "HELD_BYTES", 1000)
    parted = read(pixels)
    assert parted.in_file(whole(parted)) == held.in_file(whole(held))
    assert held.blanks.said == parted.blanks.said != ""
    window = Window(100, 60, 120, 180)
    blank = held.blanks.over(whole(held))
    np.testing.assert_array_equal(parted.blanks.over(whole(held)), blank)
    for z in range(planes):
        # From what the specimen is continued depends on how much of it is read.
        known = ~blank[window.slices]
        np.testing.assert_array_equal(parted.read(z, window)[known], held.read(z, window)[known])


def test_a_series_of_which_no_place_shows_in_all_planes_is_refused():
    stack = through_focus(3, best=1)
    stack[0, : SIDE // 2] = stack[2, SIDE // 2 :] = 0
    with pytest.raises(UnsupportedImage, match=r"no place of cells\.tif .*\(level 0\)"):
        read(stack)


def paired(stack: np.ndarray, tile_px: int) -> tuple[list[Pair], Pairing]:
    series = read(stack)
    pairing = Pairing(
        series, survey(series, tile_px=tile_px, measure=DEFAULT_MEASURE), IngestSettings(tile_px=tile_px),
        shows_nothing=lambda _: False, stays=lambda _: False, may_clip=False,
    )  # fmt: skip
    return list(pairing.pairs()), pairing


def test_pairs_of_a_series_hold_neither_rim_nor_scale_bar():
    stack = framed(with_scale_bar(through_focus(7, best=3)))
    pairs, pairing = paired(stack, tile_px=384)
    assert {pair.plane for pair in pairs} == set(range(7))
    assert pairing.left_out.blank == 0
    for pair in pairs:
        assert pair.pixels.shape == (SIDE - 32, SIDE - 19)
        assert pair.pixels.min() > 0
        assert pair.pixels.max() < 65535
        assert pair.target.max() < 65535


def test_tiles_that_are_blank_in_large_part_get_no_pairs():
    plain, _ = paired(through_focus(7, best=3), tile_px=64)
    pairs, pairing = paired(with_scale_bar(through_focus(7, best=3)), tile_px=64)
    assert pairing.left_out.blank == 2
    assert len(plain) - len(pairs) == 2 * 7
    assert all(pair.target.max() < 65535 for pair in pairs)


def test_rims_of_planes_that_were_moved_are_cut_off_in_all_of_them():
    stack = through_focus(9, best=4)
    for z in range(9):
        away = 3 * (z - 4)
        rim = np.s_[:away] if away > 0 else np.s_[away:]
        if away:
            stack[z, rim] = 0
    series = read(stack)
    assert series.in_file(whole(series)) == Window(14, 0, SIDE - 28, SIDE)
    assert all(series.read(z, whole(series)).min() > 0 for z in range(9))
