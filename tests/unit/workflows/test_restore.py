"""``refocus restore`` in this process: what files and callers say of the optics reaches the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from rich.console import Console

from refocus.io.writers import write_ome_tiff
from refocus.model.checkpoint import ModelPackage
from refocus.model.restore import restore
from refocus.optics.settings import OpticalSystem
from refocus.optics.simulate import simulate_focal_series
from refocus.workflows.restore import Options, restore_files
from refocus.zstack import Acquisition

SYSTEM = OpticalSystem(numerical_aperture=0.95, wavelength_um=0.525, pixel_size_um=0.25)


@pytest.fixture(scope="module")
def blurred() -> np.ndarray:
    stack, _ = simulate_focal_series(
        "nuclei", planes=2, z_step_um=3.0, focus_plane=1.0, system=SYSTEM, size_px=(192, 192), seed=3
    )
    return stack.pixels[0]


@pytest.mark.parametrize("said_by", ["file", "caller", "nobody", "file to deaf ears"])
def test_optics_are_told_by_the_file_or_by_the_caller(
    blurred: np.ndarray, said_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REFOCUS_STORE_ENDPOINT", "REFOCUS_STORE_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    source, target = tmp_path / "in.ome.tif", tmp_path / "out.tif"
    said = Acquisition(pixel_size_um=0.25, numerical_aperture=0.95, wavelength_um=0.525, modality="fluorescence")
    write_ome_tiff(source, blurred, "YX", said if said_by.startswith("file") else Acquisition(pixel_size_um=0.25))
    options = {"caller": {"na": 0.95, "wavelength_um": 0.525}, "file to deaf ears": {"blind": True}}
    restore_files(source, target, Options(model="fluorescence", **options.get(said_by, {})), Console(quiet=True))
    package = ModelPackage.bundled("fluorescence")
    blind = restore(blurred, package).pixels
    told = said_by in ("file", "caller")
    expected = restore(blurred, package, optics=SYSTEM).pixels if told else blind
    np.testing.assert_array_equal(tifffile.imread(target), expected)
    assert (blind != expected).any() == told
