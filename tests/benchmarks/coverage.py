#!/usr/bin/env python
"""How well 90% intervals hold on specimens that had no part in them, the calibration's own left out in turn among them.

    tests/benchmarks/coverage.py DATA/sharp --model fluorescence

Calibration and validation are each a few dozen specimens, and coverage of single ones spreads by ten points. So each
specimen of the calibration split is left out once and covered by what the others say; validation specimens are covered
by what all of them say. Restraint stays as it ships: it was fitted on all of the calibration split. A specimen counts
once at each depth, exposures averaged. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refocus.data.splits import Split
from refocus.model.calibration import Calibration, CalibrationSample, coverage, fit_calibration
from refocus.training.evaluate import commit, machine
from refocus.training.trust import CALIBRATION_PHOTONS, CALIBRATION_STEPS, calibration_samples
from refocus.training.validation import sharp_images_in
from refocus.workflows.evaluate import open_package

#: Of the largest blur; at NA 0.75 and 0.325 um pixels 0 to 10 um.
STEPS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)

#: Coverage by specimen and step.
Covered = dict[tuple[str, float], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of sharp images, as ingest would split them")
    parser.add_argument("--model", default="fluorescence", help="bundled name or folder of a package")
    parser.add_argument("--device", help="cpu or cuda (default: what is there)")
    options = parser.parse_args()
    package = open_package(options.model)
    largest = package.config.largest_blur_px

    def samples(split: Split, steps: tuple[float, ...], photons: tuple[float, ...]) -> list[CalibrationSample]:
        of_split = sharp_images_in(options.images, split)
        images = [i for i in of_split if i.modality == package.config.modality and i.holds_a_field]
        print(f"{split}: {len({i.specimen for i in images})} specimens", flush=True)
        return list(calibration_samples(package, images, steps=steps, photons=photons, device=options.device))

    fitted_on = samples("calibration", CALIBRATION_STEPS, CALIBRATION_PHOTONS)
    others = samples("validation", STEPS, (1500.0,))
    left_out: Covered = {}
    for specimen, rest, own in in_turn(fitted_on):
        print(f"  without {specimen}", flush=True)
        gather(left_out, fit_calibration(rest), own, largest)
    validation: Covered = {}
    gather(validation, fit_calibration(fitted_on), others, largest)

    print(f"\n{package.config.name} {package.digest[:12]}, coverage of the 90% interval (%), blur over the range\n")
    print("| | " + " | ".join(f"{step:g}" for step in STEPS) + " |\n|---" + "|---" * len(STEPS) + "|")
    rows = {}
    for name, covered in (
        ("calibration, left out in turn", left_out),
        ("validation", validation),
        ("all", left_out | validation),
    ):
        rows[name] = [summary(covered, step) for step in STEPS]
        print(f"| {name} | " + " | ".join(f"{mean:.1f} ± {error:.1f}" for mean, error, _ in rows[name]) + " |")
    record = {"machine": machine(), "commit": commit(), "model": package.config.name, "digest": package.digest}
    print(json.dumps({**record, "steps": STEPS, "mean_error_specimens": rows}))


def in_turn(samples: list[CalibrationSample]) -> Iterator[tuple[str, list[CalibrationSample], list[CalibrationSample]]]:
    """Yield each specimen, the samples of all others, and its own."""
    for specimen in sorted({s.specimen for s in samples}):
        own = [s for s in samples if s.specimen == specimen]
        yield specimen, [s for s in samples if s.specimen != specimen], own


def gather(into: Covered, calibration: Calibration, samples: list[CalibrationSample], largest_blur_px: float) -> None:
    """Add the share of each sample's pixels that are covered."""
    for sample in samples:
        assert sample.true_blur_px is not None
        step = min(STEPS, key=lambda step: abs(step - sample.true_blur_px / largest_blur_px))
        if abs(step - sample.true_blur_px / largest_blur_px) < 0.02:
            half = calibration.half_width(sample.scale, sample.blur_radius_px)
            into.setdefault((sample.specimen, step), []).append(coverage(sample.error, half))


def summary(covered: Covered, step: float) -> tuple[float, float, int]:
    """Mean over specimens in %, its standard error, and how many there are."""
    shares = 100 * np.array([np.mean(shares) for (_, at), shares in covered.items() if at == step])
    return float(shares.mean()), float(shares.std(ddof=1) / np.sqrt(len(shares))), len(shares)


if __name__ == "__main__":
    main()
