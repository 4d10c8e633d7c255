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
from refocus.model.explanation import Explanation
from refocus.optics.ladder import PROFILES
from refocus.optics.simulate import simulate_focal_series
from refocus.workflows.explain import said_of


@pytest.fixture
def series(tmp_path: Path) -> Path:
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


def test_an_image_without_structure_has_no_blur(tmp_path: Path) -> None:
    flat = tmp_path / "flat.tif"
    tifffile.imwrite(flat, np.full((48, 40), 1000, np.uint16))
    ran = CliRunner().invoke(app, ["explain", str(flat), str(tmp_path / "page.png")])
    assert ran.exit_code == 0, ran.output
    assert "no structure to judge a blur by" in ran.output
    assert "px (" not in ran.output


@pytest.mark.parametrize(
    ("taken_px", "network_px", "doubted"), [(6.0, 6.5, False), (1.0, 1.9, False), (4.0, 6.1, True), (14.0, 9.0, True)]
)
def test_a_blur_that_the_network_takes_for_another_is_doubted(
    taken_px: float, network_px: float, doubted: bool
) -> None:
    found = explanation(radius_px=taken_px, predicted_radius_px=network_px)
    said = said_of(found, None)
    assert f"blur {taken_px:.1f} px (NA near {found.profile.numerical_aperture:g})" in said
    assert ("they disagree" in said) == doubted


def explanation(**changes: float) -> Explanation:
    ramp, none = np.arange(64, dtype=np.float32).reshape(8, 8), np.zeros(0, np.float32)
    known = {
        "rows": slice(0, 8), "columns": slice(0, 8), "given": ramp, "restored": ramp, "half_width": ramp,
        "filtered": None, "deconvolved": None, "radius_px": 1.0, "predicted_radius_px": 1.0, "profile": PROFILES[0],
        "told": False, "radii_px": none, "spectrum_nats": none, "light_nats": none, "cycles_per_px": none,
        "power": none, "zeros_cycles_per_px": none, "noise": None, "digest": "0" * 64,
    }  # fmt: skip
    return Explanation(**known | changes)


def test_an_error_names_the_image(tmp_path: Path) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_text("hello")
    ran = CliRunner().invoke(app, ["explain", str(bad), str(tmp_path / "page.png")])
    assert str(ran.exception).startswith(f"{bad}: ")
