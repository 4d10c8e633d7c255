"""``python -m refocus.cli``."""

from refocus.cli import main

main()
