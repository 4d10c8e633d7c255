"""A server's process, known by a word of its command line: a bare process number may have passed to somebody else."""

from __future__ import annotations

import contextlib
import time

import psutil

from refocus.errors import StoreError

_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05


def runs(pid: int | None, word: str) -> bool:
    """Return whether process `pid` lives and has `word` as one argument of its command line."""
    return pid is not None and _known(pid, word) is not None


def find(word: str) -> int | None:
    """Return a process of this machine that has `word` in its command line, or None."""
    return next((pid for pid in psutil.pids() if runs(pid, word)), None)


def end(pid: int, word: str) -> None:
    """Ask the process to end, insist after a while, and return when it is gone and has let go of its ports.

    Raises
    ------
    StoreError
        If it does not end, as one that waits for a broken disk.
    """
    process = _known(pid, word)
    if process is None:
        return
    for ask in (process.terminate, process.kill):
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        with contextlib.suppress(psutil.NoSuchProcess):
            ask()
        while time.monotonic() < deadline:
            if _gone(process):
                return
    raise StoreError(f"process {pid} ({word}) does not end, not even when killed; is its disk there?")


def _known(pid: int, word: str) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        return process if word in process.cmdline() else None
    except psutil.Error:
        return None


def _gone(process: psutil.Process) -> bool:
    # An ending process loses its command line first and its open ports last, so the former tells too little. One that
    # nobody waits for, as under a container's first process, stays in the table: without other threads, it has ended.
    try:
        process.wait(_POLL_S)
    except psutil.TimeoutExpired:
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
    return True
