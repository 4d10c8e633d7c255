#!/usr/bin/env python
"""Measure models on images that training never saw, and write evaluation.json and evaluation.html.

jobs/evaluate.py --model candidate --model deep_r --images raw/sharp --scope wide --calibrate calibrated
"""

import argparse
from pathlib import Path

from refocus.cli import clear_errors, console
from refocus.workflows.evaluate import EvaluationOptions, evaluate_and_write, fit_gate_and_write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="bundled name or folder; the first is judged")
    parser.add_argument("--dataset", help="URI, NAME/VERSION, or NAME for its newest version")
    parser.add_argument("--images", type=Path, help="instead: a folder of sharp images")
    parser.add_argument("--stacks", type=Path, help="and a focal series, or a folder of them")
    parser.add_argument("--split", default="validation", choices=["validation", "calibration", "train"])
    parser.add_argument("--most", type=int, default=24, help="sharp images a modality, at most (default: 24)")
    parser.add_argument("--scope", default="standard", choices=["standard", "quick", "wide"], help="wide: all images")
    parser.add_argument("--classical", action="store_true", help="with Wiener and Richardson-Lucy: minutes")
    parser.add_argument("--baselines-from", type=Path, help="an evaluation.json whose classical rows are taken over")
    parser.add_argument("--calibrate", type=Path, help="fit intervals and gate first; save the package here")
    parser.add_argument("--objective", type=float, nargs="+", help="NA, um a pixel, um of light (0.75 0.325 0.525)")
    parser.add_argument("--tell-optics", action="store_true", help="tell models the objective, as OME files do")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="folder (default: evaluation)")
    parser.add_argument("--fit-gate", type=Path, help="instead: fit the shipped gate on --images, write it here")
    options = vars(parser.parse_args())
    with clear_errors():
        if gate := options.pop("fit_gate"):
            fit_gate_and_write(gate, options["images"], console())
        else:
            evaluate_and_write(EvaluationOptions(tuple(options.pop("model")), **options), console())


if __name__ == "__main__":
    main()
