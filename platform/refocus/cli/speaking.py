"""How commands and jobs speak to a person: where text goes, and what an error looks like."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from refocus.errors import RefocusError

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turn errors raised on purpose into one message and their exit status; REFOCUS_TRACEBACK=1 shows all."""
    try:
        yield
    except RefocusError as error:
        if os.environ.get("REFOCUS_TRACEBACK") == "1":
            raise
        sys.stdout.flush()
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_status) from None


def console() -> Console:
    """Return where commands and jobs speak to a person."""
    from rich.console import Console

    # A job's output goes to a log that has no width of its own.
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=not sys.stdout.isatty())
