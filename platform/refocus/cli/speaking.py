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

# What shells report of a process that SIGINT ended.
_INTERRUPTED = 130


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turn errors raised on purpose, those of files and networks, and Ctrl-C into one message and an exit status.

    REFOCUS_TRACEBACK=1 shows all.
    """
    try:
        yield
    except (RefocusError, OSError) as error:
        if os.environ.get("REFOCUS_TRACEBACK") == "1":
            raise
        sys.stdout.flush()
        print(f"{type(error).__name__}: {_said_by(error)}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_status if isinstance(error, RefocusError) else 1) from None
    except KeyboardInterrupt:
        sys.stdout.flush()
        print("Interrupted.", file=sys.stderr, flush=True)
        raise SystemExit(_INTERRUPTED) from None


def _said_by(error: RefocusError | OSError) -> str:
    if isinstance(error, RefocusError) or error.filename is None:
        return str(error)
    return f"{error.filename}: {error.strerror}."


def console() -> Console:
    """Return where commands and jobs speak to a person."""
    from rich.console import Console

    # Names of files may hold brackets and colons: nothing that is said is markup. A job's log has no width of its own.
    at_screen = sys.stdout.isatty()
    return Console(
        width=None if at_screen else 120, highlight=False, soft_wrap=not at_screen, markup=False, emoji=False
    )
