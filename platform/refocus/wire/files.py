"""Results on disk: whole or not at all, and never over what nobody gave up."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from refocus.errors import ConfigurationError, InputError, ModelUnfit, RefocusError, UnreadableImage


def check_target(target: Path, *inputs: Path, overwrite: bool = False, suffixes: tuple[str, ...] = ()) -> None:
    """Raise `ConfigurationError` unless a result may be written to `target`; to be asked before the work.

    Parameters
    ----------
    target : Path
        Its folder need not be there: `write_whole` makes it.
    *inputs : Path
        What the result is made from, which is never written over.
    overwrite : bool
        Whether another file that is there may be replaced.
    suffixes : tuple of str
        What its name may end in; any if empty.
    """
    if suffixes and not target.name.lower().endswith(suffixes):
        raise ConfigurationError(f"{target} would be no file that is written here; expected {' or '.join(suffixes)}.")
    if target.is_dir():
        raise ConfigurationError(f"{target} is a folder; expected the name of a file for the result.")
    if target.exists():
        if any(given.exists() and target.samefile(given) for given in inputs):
            raise ConfigurationError(f"{target} is the input itself; choose another place for the result.")
        if not overwrite:
            raise ConfigurationError(f"{target} exists; choose another place, or --overwrite to replace it.")
    nearest = next(folder for folder in target.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise ConfigurationError(f"{target} cannot be written: {nearest} is a file; expected a folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{target} cannot be written: {nearest} is closed to you; choose another place.")


@contextlib.contextmanager
def naming(source: Path) -> Iterator[None]:
    """Let errors about what `source` holds begin with its name; that it cannot be read is one of them.

    Errors of the file system that name another file are left as they are.
    """
    try:
        yield
    except (InputError, ModelUnfit) as error:
        if str(error).startswith(str(source)):
            raise
        raise type(error)(f"{source}: {error}") from error
    except RefocusError:
        raise
    except OSError as error:
        if error.filename not in (None, str(source), source):
            raise
        raise UnreadableImage(f"{source}: {error.strerror or error}.") from error


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
