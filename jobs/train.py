#!/usr/bin/env python
"""Train a recipe on a dataset version, with one worker a GPU or two on CPU.

ray job submit jobs/train.py
jobs/train.py --recipe fluorescence --dataset s3://refocus/datasets/plate7/v1 --run plate7-a
jobs/train.py --recipe fluorescence --dataset s3://refocus/datasets/plate7/v1 --run plate7-a --resume
"""

import argparse
import time

from refocus import recipes
from refocus.cli import clear_errors, console
from refocus.training.overrides import with_overrides
from refocus.workflows.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="smoke", help="one of refocus.recipes (default: smoke)")
    parser.add_argument("--dataset", default="default", help="URI, NAME/VERSION, or NAME for its newest version")
    parser.add_argument("--run", default=time.strftime("run-%Y%m%d-%H%M%S"), help="name of the run (default: the time)")
    parser.add_argument("--workers", help="number, or MIN:MAX (default: one a GPU, or 2 on CPU)")
    parser.add_argument("--wait", type=float, metavar="SECONDS", help="for resources (default: 45)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    options = parser.parse_args()
    with clear_errors():
        config = with_overrides(recipes.get(options.recipe), options.set)
        places = {name: getattr(options, name) for name in ("dataset", "run", "workers", "wait", "resume")}
        train(config, **places, console=console())


if __name__ == "__main__":
    main()
