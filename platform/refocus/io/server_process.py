"""A server's process, known by a word of its command line: a bare process number may have passed to somebody else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from refocus.errors import StoreError

_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05


def runs(pid: int | None, word: str) -> bool:
    """Return whether process `pid` lives and has `word` as one argument of its command line."""
    return pid is not None and word in _command_line(pid)


def find(word: str) -> int | None:
    """Return a process of this machine that has `word` in its command line; None where there is no ``/proc``."""
    return next((pid for pid in _processes() if runs(pid, word)), None)


def end(pid: int, word: str) -> None:
    """Ask the process to end, insist after a while, and return when it is gone.

    Raises
    ------
    StoreError
        If it does not end, as one that waits for a broken disk.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        if runs(pid, word):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        while time.monotonic() < deadline:
            # Our own child stays in the table until it is waited for.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if not runs(pid, word):
                return
            time.sleep(_POLL_S)
    raise StoreError(f"process {pid} ({word}) does not end, not even when killed; is its disk there?")


def _command_line(pid: int) -> list[str]:
    if Path("/proc/self/cmdline").exists():
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        except OSError:
            return []
    # macOS has no /proc, and ps does not show where an argument ends: those with blanks are not found.
    command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


def _processes() -> Iterator[int]:
    yield from (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
