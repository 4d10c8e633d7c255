#!/usr/bin/env python
"""Publish a run's best checkpoint and make it champion, if it beats the present one on held-out images.

    jobs/promote.py --run plate7-a
    jobs/promote.py --run plate7-a --alias challenger
    jobs/promote.py --run plate7-a --force --reason "fixes the blue channel, worse elsewhere"

Ends with status 3 where the gate refuses; each condition that failed is printed.
"""

import argparse

from refocus.cli import clear_errors, console
from refocus.workflows.promote import promote


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="name of the training run")
    parser.add_argument("--policy", default="default", help="gate policy: default, quickstart, or a YAML file")
    parser.add_argument("--alias", default="champion", choices=["champion", "challenger"])
    parser.add_argument("--quick", action="store_true", help="evaluate on few images: seconds")
    parser.add_argument("--force", action="store_true", help="promote although the gate refuses; needs --reason")
    parser.add_argument("--reason", default="", help="why, for the record")
    options = parser.parse_args()
    if options.force and not options.reason.strip():
        parser.error("--force is written down with its reason: give --reason")
    with clear_errors():
        promote(**vars(options), console=console())


if __name__ == "__main__":
    main()
