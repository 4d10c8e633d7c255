from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from refocus.focus.commands import report_focus
from refocus.focus.plane import find_in_focus_plane
from refocus.optics.settings import OpticalSystem
from refocus.zstack import Acquisition

from .conftest import cells, series

SYSTEM = OpticalSystem(numerical_aperture=0.5, wavelength_um=0.525, pixel_size_um=0.4)


def reported(planes: np.ndarray, tmp_path) -> tuple[str, object]:
    said = io.StringIO()
    found = report_focus(
        iter(planes),
        acquisition=Acquisition(z_step_um=1.5, pixel_size_um=0.4),
        name="plate7.tif",
        measure="vollath4",
        tile_px=32,
        plot=tmp_path / "curve.png",
        console=Console(file=said, width=120),
    )
    assert (tmp_path / "curve.png").stat().st_size > 1000
    return said.getvalue(), found


def test_the_report_names_the_plane_that_the_library_finds(tmp_path):
    planes = series(cells(96, np.random.default_rng(1)), SYSTEM, (np.arange(11) - 5.2) * 1.5)
    said, found = reported(planes, tmp_path)
    np.testing.assert_allclose(found.curve, find_in_focus_plane(planes).curve)
    assert f"In focus at plane {found.position:.2f} (nearest 5)" in said
    assert "a tilt of 0.0" in said


def test_the_report_warns_of_a_peak_at_the_edge(tmp_path):
    planes = series(cells(96, np.random.default_rng(1)), SYSTEM, (np.arange(6) + 2) * 1.5)
    said, found = reported(planes, tmp_path)
    assert found.at_edge
    assert "focus may lie outside" in said
    assert "No tilt" in said
