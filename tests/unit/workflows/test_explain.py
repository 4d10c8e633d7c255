"""``refocus explain``: a picture, a sentence, and clear words for what cannot be explained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage.io import imread
from typer.testing import CliRunner

from refocus.cli.main import app
from refocus.errors import ConfigurationError, RefocusError, UnsupportedImage
from refocus.optics.simulate import simulate_focal_series


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("REFOCUS_STORE_ENDPOINT", "REFOCUS_STORE_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    stack, _ = simulate_focal_series(
        "nuclei", planes=2, z_step_um=4.0, focus_plane=1.0, size_px=(200, 220), thin=True, seed=3
    )
    path = tmp_path / "series.tif"
    tifffile.imwrite(path, stack.pixels, metadata={"axes": "ZYX"})
    return path


def test_a_page_is_drawn_and_the_blur_is_said(series: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    ran = CliRunner().invoke(app, ["explain", str(series), str(page), "--at", "100", "90", "--na", "0.75",
                                   "--pixel-size-um", "0.325", "--model", "fluorescence"])  # fmt: skip
    assert ran.exit_code == 0, ran.output
    radius_px = float(ran.output.split("blur ")[1].split(" px")[0])
    assert radius_px == pytest.approx(13.9, rel=0.08)
    assert "told NA 0.75" in ran.output
    drawn = imread(page)
    assert drawn.shape[:2] == (726, 1408)
    # Not blank, and not of one colour: images, curves, maps.
    assert len(np.unique(drawn.reshape(-1, drawn.shape[-1]), axis=0)) > 1000


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["page.png", "--plane", "2"], UnsupportedImage, "2 planes, counted from 0"),
        (["page.jpg"], ConfigurationError, "expected .png"),
        (["page.png", "--at", "500", "0"], UnsupportedImage, "lie outside an image of 200 x 220 px"),
    ],
)
def test_what_cannot_be_explained_is_said(
    series: Path, tmp_path: Path, arguments: list[str], error: type[RefocusError], says: str
) -> None:
    page, *options = arguments
    ran = CliRunner().invoke(app, ["explain", str(series), str(tmp_path / page), *options])
    assert isinstance(ran.exception, error)
    assert says in str(ran.exception)
    assert not (tmp_path / page).exists()
