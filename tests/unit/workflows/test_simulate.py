from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from refocus.errors import ConfigurationError
from refocus.focus.plane import find_in_focus_plane
from refocus.io.microscopy import open_image
from refocus.workflows.simulate import truth_path, write_simulation


def written(target, specimen: str, **changes):
    options = {"planes": 9, "z_step_um": 1.0, "size_px": 64, "tilt_deg": 0.0, "seed": 3} | changes
    said = io.StringIO()
    torch.set_num_threads(1)
    truth = write_simulation(target, specimen=specimen, console=Console(file=said, width=200), **options)
    return truth, said.getvalue()


@pytest.mark.parametrize(("specimen", "axes"), [("nuclei", "ZYX"), ("tissue", "ZYXS")])
def test_a_simulated_series_is_a_microscopy_file_with_its_truth_beside_it(tmp_path, specimen, axes):
    target = tmp_path / f"{specimen}.ome.tif"
    truth, said = written(target, specimen)
    with open_image(target) as image, open_image(truth_path(target)) as expected:
        assert image.axes == axes
        assert image.size("Z") == 9
        assert (image.acquisition.z_step_um, image.acquisition.pixel_size_um) == (1.0, 0.325)
        assert image.acquisition.modality == ("brightfield" if "S" in axes else "fluorescence")
        assert "focus_plane" in image.metadata["ome_xml"]
        np.testing.assert_array_equal(expected.plane(), truth.in_focus)
        found = find_in_focus_plane(image.stack().pixels)
    # A specimen 4 to 5 um thick has no one plane; its middle is within two of its planes of the sharpest.
    assert abs(found.position - truth.focus_plane) < 2
    assert "in focus at plane 4" in said


def test_equal_seeds_write_equal_files(tmp_path):
    for name in ("a", "b"):
        written(tmp_path / f"{name}.ome.tif", "puncta", planes=3)
    assert (tmp_path / "a.ome.tif").read_bytes() == (tmp_path / "b.ome.tif").read_bytes()


def test_a_name_that_is_no_tiff_is_refused_before_the_work(tmp_path):
    with pytest.raises(ConfigurationError, match=r"\.ome\.tif"):
        written(tmp_path / "series.png", "nuclei")
    assert not list(tmp_path.iterdir())
