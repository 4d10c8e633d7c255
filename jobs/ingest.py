#!/usr/bin/env python
"""Turn raw images in the object store into a dataset version.

ray job submit jobs/ingest.py
jobs/ingest.py --raw s3://refocus/raw/plate7 --dataset plate7 --z-step-um 0.5
"""

import argparse

from refocus.cli import clear_errors, console
from refocus.workflows.ingest import ingest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", default="raw/", help="folder of the raw images, or one of them (default: raw/)")
    parser.add_argument("--dataset", default="default", help="name of the dataset (default: default)")
    parser.add_argument("--version", help="version to make (default: named after its content)")
    parser.add_argument("--axes", help="what axes mean, such as ZYX, of files with as many; where no sidecar answers")
    parser.add_argument("--modality", help="likewise")
    parser.add_argument("--pixel-size-um", type=float, help="likewise")
    parser.add_argument("--z-step-um", type=float, help="likewise")
    parser.add_argument("--numerical-aperture", type=float, help="likewise")
    options = vars(parser.parse_args())
    with clear_errors():
        place = {name: options.pop(name) for name in ("raw", "dataset", "version")}
        ingest(**place, answers={k: v for k, v in options.items() if v is not None}, console=console())


if __name__ == "__main__":
    main()
