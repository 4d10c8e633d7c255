from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from refocus.errors import InputError, MetadataMissing
from refocus.focus.tiles import FocusMap, focus_map
from refocus.focus.tilt import fit_tilt
from refocus.optics.formation import tilted_sheet
from refocus.optics.settings import OpticalSystem

from .conftest import cells, noisy


def map_of(plane: tuple[float, float, float], rows: int = 6, columns: int = 8, tile_px: int = 64) -> FocusMap:
    center_y, center_x = (np.arange(n) * tile_px + (tile_px - 1) / 2 for n in (rows, columns))
    position = plane[0] + plane[1] * center_y[:, None] + plane[2] * center_x
    return FocusMap(
        position=position,
        confidence=np.ones_like(position),
        at_edge=np.zeros_like(position, bool),
        center_y_px=center_y,
        center_x_px=center_x,
        curves=np.zeros((1, rows, columns)),
    )


def test_a_plane_is_fitted_exactly():
    tilt = fit_tilt(map_of((10.0, 0.004, -0.007)))
    assert (tilt.z_at_origin, tilt.slope_y, tilt.slope_x) == pytest.approx((10.0, 0.004, -0.007), abs=1e-9)
    assert tilt.tiles == 48
    assert tilt.position_at(100, [0, 50]) == pytest.approx([10.4, 10.05])


def test_a_third_of_the_tiles_may_be_wrong():
    rng = np.random.default_rng(1)
    found = map_of((10.0, 0.004, -0.007))
    position = found.position + rng.normal(scale=0.05, size=found.position.shape)
    wrong = rng.permutation(48)[:16]
    position.flat[wrong] = rng.uniform(0, 6, 16)
    tilt = fit_tilt(replace(found, position=position))
    fitted = tilt.position_at(found.center_y_px[:, None], found.center_x_px)
    # 32 tiles of 0.05 planes each and 3 unknowns: 0.05 * sqrt(3 / 32) = 0.015, four times that.
    assert np.sqrt(np.mean((fitted - found.position) ** 2)) < 0.06


def test_tiles_without_confidence_or_at_an_edge_do_not_count():
    found = map_of((10.0, 0.0, 0.01))
    position, confidence, at_edge = found.position.copy(), found.confidence.copy(), found.at_edge.copy()
    position[:3], confidence[:3] = 0.0, 0.05
    position[3], at_edge[3] = 30.0, True
    tilt = fit_tilt(replace(found, position=position, confidence=confidence, at_edge=at_edge))
    assert tilt.slope_x == pytest.approx(0.01, abs=1e-9)
    assert tilt.tiles == 16


def test_a_single_row_of_tiles_leans_along_x_alone():
    tilt = fit_tilt(map_of((4.0, 0.0, 0.02), rows=1))
    assert tilt.slope_y == 0
    assert tilt.slope_x == pytest.approx(0.02)


def test_one_tile_is_a_level_plane():
    tilt = fit_tilt(map_of((4.0, 0.0, 0.0), rows=1, columns=1))
    assert (tilt.z_at_origin, tilt.slope_y, tilt.slope_x) == pytest.approx((4.0, 0, 0))


def test_too_few_tiles_are_refused_with_what_to_look_at():
    found = map_of((10.0, 0.0, 0.0))
    confidence = np.zeros_like(found.confidence)
    confidence[0, 0] = confidence[1, 1] = 1
    with pytest.raises(InputError, match="2 of 48 tiles"):
        fit_tilt(replace(found, confidence=confidence))


def test_an_angle_needs_both_lengths():
    tilt = fit_tilt(map_of((10.0, 0.03, 0.04)))
    # tan = 0.05 planes a pixel * 0.5 um / 0.25 um
    assert tilt.angle_deg(z_step_um=0.5, pixel_size_um=0.25) == pytest.approx(np.degrees(np.arctan(0.1)))
    with pytest.raises(MetadataMissing, match="z step"):
        tilt.angle_deg(z_step_um=None, pixel_size_um=0.25)


def test_tiles_recover_a_tilt_of_one_and_a_half_degrees_within_0_3_um_rms():
    rng = np.random.default_rng(2)
    system = OpticalSystem(numerical_aperture=0.5, wavelength_um=0.525, pixel_size_um=1.0)
    side_px, step_um, focus = 160, 1.5, 4.3
    rise = np.tan(np.radians(1.5))
    slope = (0.6 * rise, 0.8 * rise)
    emission = torch.tensor(cells(side_px, rng), dtype=torch.float32)[None].expand(10, -1, -1)
    defocus_um = torch.tensor((np.arange(10) - focus) * step_um, dtype=torch.float32)
    planes = noisy(tilted_sheet(emission, system, defocus_um, slope, node_um=1.2).numpy(), 5.0, rng)
    tilt = fit_tilt(focus_map(planes, tile_px=40))
    at = np.arange(side_px)
    height_um = ((at[:, None] - 79.5) * slope[0] + (at - 79.5) * slope[1]) * system.pixel_size_um
    # A part of the sheet that lies higher by h is in focus where the plane is lower by h.
    error_um = tilt.position_at(at[:, None], at) * step_um - (focus * step_um - height_um)
    assert np.sqrt(np.mean(error_um**2)) < 0.3
    assert tilt.angle_deg(z_step_um=step_um, pixel_size_um=system.pixel_size_um) == pytest.approx(1.5, abs=0.2)
