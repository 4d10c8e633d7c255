"""Results on disk: whole or not at all."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `target` at the end, so that nobody ever reads half a file.

    Folders that are missing are made. Errors of the file system name `target`.
    """
    # Short, because the target's own name may be as long as names can be.
    partial = target.with_name(f".{uuid.uuid4().hex[:12]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(target)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(target)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_whole(target: Path, data: bytes) -> None:
    """Write `data` beside `target` and move it there; see `whole_file`."""
    with whole_file(target) as partial:
        partial.write_bytes(data)
