#!/usr/bin/env python
"""What a model gains on images that are not as the bar has them: other exposures, processed images, other blurs.

    tests/benchmarks/recordings.py DATA/sharp --model fluorescence --split validation
    tests/benchmarks/recordings.py FOLDER --model fluorescence                 # a folder of images as a whole

Each sharp image is blurred without noise (NA 0.75, 0.325 um pixels; the evaluation's own scenes), recorded with
shot noise and 1.6 electrons of read noise, 1500 photo-electrons at the peak unless said otherwise, and then treated as
cameras, programs and people treat images. Truth is the sharp image, enlarged, turned or painted over alike; saturation
and display curves are applied to it, too, smoothing, sharpening and compression are not. Columns are radii of the blur
in pixels of the image as it is restored. Prints a table for the mean gain in PSNR over the input and its worst image,
one for how many images lose more than 0.3 dB, are flagged by the gate, and are covered by the 90% interval, and one
line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
from scipy.ndimage import convolve, gaussian_filter, median_filter
from scipy.signal import fftconvolve
from skimage.transform import rescale, rotate

from refocus.model import metrics
from refocus.optics.settings import STANDARD_SYSTEM
from refocus.training.evaluate import Method, commit, machine, restored_by, said_about
from refocus.training.methods import network_method
from refocus.training.scenes import SceneSettings, SharpImage, scenes_of
from refocus.training.validation import evenly, sharp_images_in
from refocus.workflows.evaluate import open_package

Pixels = npt.NDArray[np.float64]
#: Noise-free image and truth [C, Y, X] in photo-electrons to what is restored and what it is compared with.
Recording = Callable[[Pixels, Pixels, np.random.Generator], tuple[Pixels, Pixels]]

RADII_PX = (0.0, 3.5, 7.0, 14.0, 21.0, 28.0)
PHOTONS, READ_NOISE_ELECTRONS = 1500.0, 1.6
GREY_LEVELS_PER_ELECTRON, PEDESTAL = 4.0, 100.0


@dataclass(frozen=True)
class Row:
    """How images come: recorded by `record`, `enlarged` so many times by it, blurred by `blur` or through optics."""

    record: Recording
    enlarged: float = 1.0
    blur: Callable[[float], Pixels] | None = None


def exposed(photons: float) -> Recording:
    def record(image: Pixels, truth: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        share = photons / PHOTONS
        return sixteen_bits(shot(image * share, rng)), grey(truth * share)

    return record


def processed(how: Callable[[Pixels], Pixels], *, truth_too: bool = False) -> Recording:
    """Each channel [Y, X] treated by `how` after it was recorded."""

    def record(image: Pixels, truth: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        seen, wanted = sixteen_bits(shot(image, rng)), grey(truth)
        seen = np.stack([how(channel) for channel in seen])
        return np.clip(np.round(seen), 0, 65535), np.stack([how(c) for c in wanted]) if truth_too else wanted

    return record


def in_eight_bits(peak: float, quality: int | None = None) -> Recording:
    """So many grey levels at the peak of the image as recorded; compressed as JPEG where a quality is given."""

    def record(image: Pixels, truth: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        electrons = shot(image, rng)
        levels = peak / max(float(electrons.max()), 1e-6)
        seen = np.clip(np.round(electrons * levels + 4.0), 0, 255)
        if quality is not None:
            pixels = np.ascontiguousarray(np.moveaxis(seen, 0, -1).astype(np.uint8).squeeze())
            decoded = imagecodecs.jpeg_decode(imagecodecs.jpeg_encode(pixels, level=quality))
            seen = np.moveaxis(np.atleast_3d(decoded), -1, 0).astype(np.float64)
        return seen, truth * levels + 4.0

    return record


def saturated(share: float) -> Recording:
    def record(image: Pixels, truth: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        seen = sixteen_bits(shot(image, rng))
        return seen.clip(max=np.quantile(seen, 1.0 - share)), grey(truth)

    return record


def displayed(gamma: float) -> Recording:
    def record(image: Pixels, truth: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        seen, full = shot(image, rng), 1.2 * PHOTONS
        seen, wanted = (60000.0 * np.clip(values / full, 0.0, 1.0) ** gamma for values in (seen, truth))
        return np.round(seen), wanted

    return record


def interpolated(channel: Pixels) -> Pixels:
    """As green of a colour camera: every other pixel, like a chessboard's, is the mean of its neighbours."""
    measured = np.indices(channel.shape).sum(0) % 2 == 0
    cross = np.array([[0.0, 0.25, 0.0], [0.25, 0.0, 0.25], [0.0, 0.25, 0.0]])
    return np.where(measured, channel, convolve(channel * measured, cross, mode="mirror"))


def sharpened(channel: Pixels) -> Pixels:
    return 2.0 * channel - gaussian_filter(channel, 2.0)


def turned(channel: Pixels) -> Pixels:
    return np.asarray(rotate(channel, 30.0, order=3, mode="reflect"))  # type: ignore[no-untyped-call]


def turned_on_black(channel: Pixels) -> Pixels:
    return np.asarray(rotate(channel, 30.0, order=1))  # type: ignore[no-untyped-call]


def rimmed(channel: Pixels) -> Pixels:
    """Black over a fifth of its height above, and an eighth of its width beside, as aligned and stitched images are."""
    height, width = channel.shape
    inside = (np.arange(height) >= height // 5)[:, None] & (np.arange(width) >= width // 8)
    return np.where(inside, channel, 0.0)


def labelled(channel: Pixels) -> Pixels:
    """A scale bar, half as long as the image is wide."""
    height, width = channel.shape
    bar = np.zeros(channel.shape, bool)
    bar[height - 24 : height - 16, width // 2 - 16 : width - 16] = True
    return np.where(bar, 65535.0, channel)


def spoilt(channel: Pixels) -> Pixels:
    """One pixel in some 800 is hot."""
    hot = np.zeros(channel.shape, bool)
    hot[11::23, 7::36] = True
    return np.where(hot, 65535.0, channel)


def gaussian(radius_px: float) -> Pixels:
    """Of a disc's variance."""
    return normal(lambda distance: np.exp(-2.0 * (distance / radius_px) ** 2), 2.2 * radius_px)


def disc(radius_px: float) -> Pixels:
    return normal(lambda distance: np.clip(radius_px + 0.5 - distance, 0.0, 1.0), radius_px + 1.0)


def normal(profile: Callable[[Pixels], Pixels], reach_px: float) -> Pixels:
    side = int(np.ceil(reach_px))
    y, x = np.mgrid[-side : side + 1, -side : side + 1]
    kernel = profile(np.hypot(y, x))
    return kernel / kernel.sum()


def shot(image: Pixels, rng: np.random.Generator) -> Pixels:
    return rng.poisson(image) + rng.normal(0.0, READ_NOISE_ELECTRONS, image.shape)


def grey(electrons: Pixels) -> Pixels:
    return electrons * GREY_LEVELS_PER_ELECTRON + PEDESTAL


def sixteen_bits(electrons: Pixels) -> Pixels:
    return np.clip(np.round(grey(electrons)), 0, 65535)


ROWS: dict[str, Row] = {
    "as recorded: 1500 photons, 16 bits": Row(exposed(PHOTONS)),
    "200 photons": Row(exposed(200.0)),
    "7000 photons": Row(exposed(7000.0)),
    "8 bits, peak at 60": Row(in_eight_bits(60.0)),
    "1% of pixels saturated": Row(saturated(0.01)),
    "display curve, power 0.6": Row(displayed(0.6)),
    "sharpened (unsharp mask, 2 px)": Row(processed(sharpened)),
    "smoothed (Gaussian, 0.7 px)": Row(processed(lambda channel: gaussian_filter(channel, 0.7))),
    "median of 3 x 3": Row(processed(lambda channel: median_filter(channel, 3))),
    "enlarged 1.5 times (cubic)": Row(
        processed(lambda channel: rescale(channel, 1.5, order=3), truth_too=True), enlarged=1.5
    ),
    "turned by 30 degrees (cubic)": Row(processed(turned, truth_too=True)),
    "turned by 30 degrees (linear), corners black": Row(processed(turned_on_black, truth_too=True)),
    "black rims above and beside": Row(processed(rimmed, truth_too=True)),
    "a scale bar": Row(processed(labelled, truth_too=True)),
    "one pixel in 800 hot": Row(processed(spoilt, truth_too=True)),
    "every other pixel interpolated": Row(processed(interpolated)),
    "JPEG, quality 90": Row(in_eight_bits(230.0, 90)),
    "JPEG, quality 75": Row(in_eight_bits(230.0, 75)),
    "blurred by a Gaussian": Row(exposed(PHOTONS), blur=gaussian),
    "blurred by a uniform disc": Row(exposed(PHOTONS), blur=disc),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of sharp images")
    parser.add_argument("--model", default="fluorescence", help="bundled name or folder of a package")
    parser.add_argument("--split", choices=("validation", "calibration", "train"), help="otherwise all images")
    parser.add_argument("--most", type=int, default=12, help="images, evenly over the folder")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), help="only those that begin so")
    options = parser.parse_args()
    package = open_package(options.model)
    of_folder = sharp_images_in(options.images, options.split)
    fitting = [i for i in of_folder if i.modality == package.config.modality and i.holds_a_field]
    if not fitting:
        parser.error(f"{options.images} holds no {package.config.modality} image of 176 px and more.")
    images = evenly(fitting, options.most)
    method = network_method(package)
    print(f"{package.config.name} {package.digest[:12]}, {len(images)} images; gain in PSNR (dB), worst image\n")
    print("| | " + " | ".join(f"{radius:g} px" for radius in RADII_PX) + " |\n|---" + "|---" * len(RADII_PX) + "|")
    record: dict[str, dict[str, list[float]]] = {}
    for name, row in ROWS.items():
        if name.startswith(tuple(options.rows)):
            said = [[measured(method, row, image, radius) for radius in RADII_PX] for image in images]
            gain, covered, flagged = np.moveaxis(np.array(said), -1, 0)
            cells = [f"{mean:+.1f}, {worst:+.1f}" for mean, worst in zip(gain.mean(0), gain.min(0), strict=True)]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
            record[name] = {
                "gain_db": gain.mean(0).round(2).tolist(),
                "worst_db": gain.min(0).round(2).tolist(),
                "losing_share": (gain < -0.3).mean(0).round(3).tolist(),
                "covered_share": covered.mean(0).round(3).tolist(),
                "flagged_share": flagged.mean(0).round(3).tolist(),
            }
    print("\n| | lose more than 0.3 dB (%) | covered by the 90% interval (%) | tiles flagged (%) |\n|---|---|---|---|")
    for name, values in record.items():
        shares = (np.mean(values[key]) for key in ("losing_share", "covered_share", "flagged_share"))
        print(f"| {name} | " + " | ".join(f"{100 * share:.0f}" for share in shares) + " |")
    made_by = {"machine": machine(), "commit": commit(), "model": package.config.name, "digest": package.digest}
    print(json.dumps({**made_by, "radii_px": RADII_PX, "rows": record}))


def measured(method: Method, row: Row, sharp: SharpImage, radius_px: float) -> tuple[float, float, float]:
    """Gain in dB, share of pixels that the interval covers, share of tiles that the gate flags."""
    image, truth = blurred(sharp, radius_px / row.enlarged, row.blur)
    name = f"{sharp.source}|{radius_px:g}"
    rng = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    seen, wanted = row.record(image, truth, rng)
    restored = restored_by(method, seen)
    said = said_about(restored, wanted)
    span = metrics.data_range(wanted)
    before, after = (metrics.psnr(pixels, wanted, range_of_data=span) for pixels in (seen, restored.pixels))
    return after - before, said["coverage"] or 0.0, said["flagged_share"] or 0.0


def blurred(sharp: SharpImage, radius_px: float, kernel: Callable[[float], Pixels] | None) -> tuple[Pixels, Pixels]:
    """Noise-free image and truth [C, Y, X], photo-electrons."""
    depth = 0.0 if kernel is not None else STANDARD_SYSTEM.defocus_um_for(radius_px)
    clean = SceneSettings(defocus_um=(depth,), photons=(1e9,), read_noise_electrons=0.0)
    scene = next(iter(scenes_of([sharp], clean)))
    image, truth = scene.image.astype(np.float64), scene.truth.astype(np.float64)
    if kernel is not None and radius_px > 0:
        spread = kernel(radius_px)
        reach = spread.shape[0] // 2
        wide = np.pad(truth, ((0, 0), (reach, reach), (reach, reach)), mode="symmetric")
        image = fftconvolve(wide, spread[None], mode="valid").clip(min=0.0)
    per_electron = PHOTONS / np.quantile(truth, 0.9995)
    return image * per_electron, truth * per_electron


if __name__ == "__main__":
    main()
