"""Pairs from simulated series whose in-focus plane is known place by place."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

from refocus.data import series as series_module
from refocus.data.manifest import IngestSettings
from refocus.data.pairing import Pair, Pairing
from refocus.data.series import Series
from refocus.data.survey import survey
from refocus.data.tiles import is_its_own_target
from refocus.focus.measures import DEFAULT_MEASURE
from refocus.io.microscopy import open_image
from refocus.optics.formation import tilted_sheet
from refocus.optics.settings import OpticalSystem
from samples import focal_series, tiff

SYSTEM = OpticalSystem(numerical_aperture=0.5, wavelength_um=0.525, pixel_size_um=1.0)
STEP_UM, FOCUS, SIDE_PX, TILE_PX = 1.5, 5.3, 192, 64
RISE = np.tan(np.radians(2.0))
SLOPE = (0.6 * RISE, 0.8 * RISE)


def paired(data: bytes, tile_px: int = TILE_PX, **settings) -> tuple[list[Pair], Pairing]:
    with open_image(data, name="stack.tif") as image:
        planes = Series(image, "stack.tif")
        seen = survey(planes, tile_px=tile_px, measure=DEFAULT_MEASURE)
        pairing = Pairing(
            planes, seen, IngestSettings(tile_px=tile_px, **settings),
            shows_nothing=lambda pixels: bool(pixels.std() < 30), stays=lambda _: False, may_clip=False,
        )  # fmt: skip
        return list(pairing.pairs()), pairing


@pytest.fixture(scope="module")
def tilted() -> np.ndarray:
    """A sheet tilted by 2 degrees through 12 planes, uint16, at SNR 5."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(2)
    inside = ndimage.gaussian_filter(rng.normal(size=(SIDE_PX, SIDE_PX)), 3, mode="wrap") > 0.1
    cells = np.where(inside, 30 + 100 * rng.random((SIDE_PX, SIDE_PX)), 5.0)
    emission = torch.tensor(cells, dtype=torch.float32)[None].expand(12, -1, -1)
    defocus_um = torch.tensor((np.arange(12) - FOCUS) * STEP_UM, dtype=torch.float32)
    clean = 100 + 30 * tilted_sheet(emission, SYSTEM, defocus_um, SLOPE, node_um=2.4).numpy()
    noise = rng.normal(scale=clean.std(axis=(1, 2)).max() / 5, size=clean.shape)
    return np.clip(clean + noise, 0, 65535).astype(np.uint16)


def true_plane(y_px: int, x_px: int) -> float:
    """Where the middle of a tile is in focus: what lies higher by h, where the plane is lower by h."""
    y, x = (at + (TILE_PX - 1) / 2 - (SIDE_PX - 1) / 2 for at in (y_px, x_px))
    return FOCUS - (y * SLOPE[0] + x * SLOPE[1]) * SYSTEM.pixel_size_um / STEP_UM


def test_tiles_of_a_tilted_series_are_paired_with_their_own_in_focus_plane(tilted):
    pairs, pairing = paired(tiff(tilted))
    assert {(pair.window.y_px, pair.window.x_px) for pair in pairs} == {
        (y, x) for y in (0, 64, 128) for x in (0, 64, 128)
    }
    truths = np.array([true_plane(pair.window.y_px, pair.window.x_px) for pair in pairs])
    assert np.ptp(truths) > 4
    labels = np.array([pair.plane - pair.planes_from_focus for pair in pairs])
    # One plane for all would be 1.8 um off, root mean square.
    assert np.sqrt(np.mean((labels - truths) ** 2)) * STEP_UM < 0.3
    for pair, label in zip(pairs, labels, strict=True):
        np.testing.assert_array_equal(pair.target, tilted[round(label)][pair.window.slices])
        np.testing.assert_array_equal(pair.pixels, tilted[pair.plane][pair.window.slices])
    assert pairing.left_out.at_edge == []


def test_tiles_in_focus_outside_the_series_are_left_out_and_the_others_stay(tilted):
    first = 5
    pairs, pairing = paired(tiff(tilted[first:]))
    outside = {(window.y_px, window.x_px) for window in pairing.left_out.at_edge}
    inside = {(pair.window.y_px, pair.window.x_px) for pair in pairs}
    assert outside
    assert inside
    assert not outside & inside
    for y in (0, 64, 128):
        for x in (0, 64, 128):
            # Within half a plane of the edge either may be right.
            if true_plane(y, x) - first < 0:
                assert (y, x) in outside
            if true_plane(y, x) - first > 1:
                assert (y, x) in inside


def drifting() -> np.ndarray:
    planes = focal_series(side=200, best=4)
    moved = [ndimage.shift(plane.astype(float), (0.3 * z, -0.2 * z), mode="nearest") for z, plane in enumerate(planes)]
    return np.rint(moved).astype(np.uint16)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "rowsperstrip": 16}, {"tile": (64, 64)}])
def test_pairs_are_the_same_however_little_may_be_held(monkeypatch, options):
    data = tiff(drifting(), **options)
    whole, _ = paired(data, tile_px=64)
    # One tile through nine planes at a time, and planes read in parts of less than a row of tiles.
    monkeypatch.setattr(series_module, "HELD_BYTES", 9 * 64 * 64 * 2)
    monkeypatch.setattr(series_module, "_READ_BYTES", 2 * 64 * 64 * 2)
    parts, pairing = paired(data, tile_px=64)
    assert len(whole) == len(parts) == 9 * 16
    assert pairing.largest_drift_px == pytest.approx(np.hypot(0.3, 0.2) * 4, abs=0.1)
    of_whole = {(pair.plane, pair.window): pair for pair in whole}
    for pair in parts:
        same = of_whole[pair.plane, pair.window]
        np.testing.assert_array_equal(pair.pixels, same.pixels)
        np.testing.assert_array_equal(pair.target, same.target)
        assert pair.planes_from_focus == same.planes_from_focus


def test_drift_is_taken_out_and_planes_that_drifted_too_far_are_left_out():
    pairs, _ = paired(tiff(drifting()), tile_px=200)
    steady = focal_series(side=200, best=4).astype(float)
    for pair in pairs:
        # Away from the rim, into which pixels moved that no plane holds; what remains is what two resamplings cost.
        inner = (slice(20, -20), slice(20, -20))
        moved = ndimage.shift(steady[pair.plane], (1.2, -0.8), mode="nearest")[inner]
        assert np.corrcoef(pair.pixels[inner].ravel(), moved.ravel())[0, 1] > 0.99
    _, pairing = paired(tiff(drifting()), tile_px=200, maximum_drift_px=1.0)
    assert set(pairing.left_out.drifted) == {0, 1, 7, 8}


def test_saturated_tiles_are_neither_input_nor_target():
    planes = focal_series(side=192, best=4) // 16
    planes[6, :96, :96] = 4095
    planes[2] = np.clip(planes[2], 0, 4095)
    pairs, pairing = paired(tiff(planes), tile_px=96)
    assert pairing.survey.full_scale == 4095
    assert dict(pairing.left_out.saturated) == {6: 1}
    assert len(pairs) == 9 * 4 - 1


def test_copies_of_a_plane_are_found_wherever_they_stand():
    planes = focal_series(side=96, best=4)
    planes[8] = planes[1]
    pairs, pairing = paired(tiff(planes), tile_px=96)
    assert pairing.survey.copies == {8: 1}
    assert sorted(pair.plane for pair in pairs) == list(range(8))


def test_what_a_file_says_wrongly_of_a_late_plane_spoils_the_series_before_any_pair(tmp_path):
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, focal_series(side=96), compression="zlib", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as file:
        offset = file.pages[8].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + 64] = bytes(64)
    with pytest.raises(ValueError, match="plane 8 cannot be decoded"):
        paired(bytes(data))


def test_the_plane_that_is_its_own_target_is_told_by_its_distance_where_planes_are_copies(tilted):
    stack = tilted.copy()
    stack[5:8] = stack[5]
    pairs, pairing = paired(tiff(stack))
    assert pairing.survey.copies == {6: 5, 7: 5}
    assert 5 in {pair.plane for pair in pairs if pair.pixels is pair.target}
    for pair in pairs:
        assert is_its_own_target(pair.planes_from_focus) == (pair.pixels is pair.target)
