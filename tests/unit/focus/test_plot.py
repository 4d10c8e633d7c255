from __future__ import annotations

import imagecodecs
import numpy as np
import pytest

from refocus.focus.plane import peak_of
from refocus.focus.plot import plot_focus


@pytest.mark.parametrize("z_step_um", [None, 0.5])
@pytest.mark.parametrize(
    "curve", [[1.0, 2.0, 5.0, 3.0, 1.0], [5.0, 4.0, 1.0], [1.0]], ids=["peak", "edge", "one plane"]
)
def test_a_curve_becomes_a_picture(tmp_path, curve, z_step_um):
    plot_focus(peak_of(curve), tmp_path / "curve.png", title="plate 7", measure="vollath4", z_step_um=z_step_um)
    picture = imagecodecs.png_decode((tmp_path / "curve.png").read_bytes())
    assert picture.shape[:2] == (480, 840)
    assert np.unique(picture.reshape(-1, picture.shape[-1]), axis=0).shape[0] > 20


@pytest.mark.parametrize("title", ["細胞_z.tif", "a$b$c.tif", "$\\frac$.tif", "two\nlines"])
def test_a_name_of_any_letters_is_drawn_without_a_warning(tmp_path, title, recwarn):
    plot_focus(peak_of([1.0, 3.0, 1.0]), tmp_path / "curve.png", title=title, measure="vollath4")
    assert [str(warning.message) for warning in recwarn] == []
