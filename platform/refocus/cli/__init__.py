"""The command line: ``refocus COMMAND``. Each command imports what it needs when it runs."""

from __future__ import annotations

from refocus.cli.main import app, clear_errors, console, main

__all__ = ["app", "clear_errors", "console", "main"]
